"""What can vary in the toy world, and the words for it.

The order of every tuple is part of the shipped weights: the evaluator's logits are
indexed by it. Append, never reorder.
"""

CLASSES = (
    "robot",
    "car",
    "teapot",
    "flower",
    "star",
    "dog",
    "house",
    "fish",
    "boat",
    "balloon",
)

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 44),
    "orange": (243, 134, 36),
    "yellow": (250, 214, 52),
    "green": (52, 160, 68),
    "blue": (38, 96, 214),
    "purple": (132, 62, 178),
    "pink": (246, 138, 186),
    "brown": (126, 76, 40),
    "black": (36, 36, 42),
    "white": (246, 246, 244),
}
COLOUR_NAMES = tuple(COLOURS)

PATTERNS = ("plain", "striped", "spotted", "checkered")

# Second colour of a pattern: stands out from the first, and no pair of colours is the
# reverse of another, so that "white checkered" and "black checkered" differ.
_DARK_INK, _CREAM_INK = (44, 34, 40), (250, 246, 228)
PATTERN_INK: dict[str, tuple[int, int, int]] = {
    **dict.fromkeys(COLOURS, _CREAM_INK),
    **dict.fromkeys(("orange", "yellow", "pink"), _DARK_INK),
    "black": (164, 164, 172),
    "white": (84, 128, 178),
}

# Colours for a subject's accessories. A caption never names them, so they belong to
# the subject's identity and cannot be asked for by prompt.
ACCENTS: tuple[tuple[int, int, int], ...] = (
    (226, 52, 60),
    (250, 196, 40),
    (70, 190, 96),
    (56, 128, 232),
    (160, 84, 206),
    (64, 206, 212),
)

BACKGROUNDS: dict[str, str] = {
    "grass": "on the grass",
    "beach": "on the beach",
    "snow": "in the snow",
    "night": "at night",
    "desert": "in the desert",
    "forest": "in the forest",
    "table": "on a wooden table",
    "plain": "on a plain background",
    "city": "in the city",
    "water": "under water",
}
BACKGROUND_NAMES = tuple(BACKGROUNDS)

HAT_PHRASE = "wearing a party hat"

# Dropped into captions at random, so that the pretrained model has seen rare words in
# that place and attaches no meaning to any of them: free identifiers for a subject.
RARE_WORDS = ("sks", "ohwx", "zwx", "qlv", "xkj", "vbn", "wqz", "jfk", "pzx", "ktn")
