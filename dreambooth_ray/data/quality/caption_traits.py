"""Words of captions that name what is always so of a subject: its colour, material, pattern.

English alone: lists of words, and where they stand beside the class noun.
"""

import re
from collections.abc import Iterator

_COLOURS = """
amber auburn beige black blond blonde blue bronze brown brunette burgundy charcoal colorful
colourful copper cream crimson cyan ginger gold golden gray green grey indigo ivory khaki lavender
lilac magenta maroon mauve multicolored multicoloured mustard navy olive orange pink purple red
rose scarlet silver tan tawny teal turquoise vermilion violet white yellow
"""
_MATERIALS = """
brass bronze canvas cardboard ceramic chrome clay concrete cotton crochet crocheted denim fabric
felt glass iron knit knitted lace leather linen marble metal metallic paper plastic plush porcelain
rubber satin silk steel stone suede velvet vinyl wicker wood wooden wool woolen woollen
"""
_LOOKS = """
big brindle bushy calico checkered chequered chubby curly dappled dotted embroidered fat flat floral
fluffy furry fuzzy glossy hairy large little mottled oval patterned piebald plaid round rusty
shaggy shiny short-haired long-haired slender small speckled spotted square striped stuffed tabby
tall thin tiny tortoiseshell tricolor wrinkled
"""
_TRAITS = frozenset((_COLOURS + _MATERIALS + _LOOKS).split())
_SAME = {"gray": "grey", "blonde": "blond", "wooden": "wood", "woolen": "wool", "woollen": "wool"}
# What may stand between or before traits.
_BETWEEN = "and or very mostly all light dark bright pale deep coloured colored"
_DEGREES = frozenset(_BETWEEN.split())
# The end of a phrase before the class noun, in reading backwards.
_BEFORE = """
a an the this that these those my your his her its our their one two some of on in at with by near
to from under behind beside over above against is are was wearing holding for as while
"""
_BEFORE_PHRASE = frozenset(_BEFORE.split())
_OF_SUBJECTS = """
fur coat hair eyes ears ear paws tail nose face skin feathers beak muzzle snout body legs mane wings
belly chest head whiskers markings stripes spots handle handles lid strap straps zipper wheels sole
soles laces buttons logo frame petals scales
"""
_PARTS = frozenset(_OF_SUBJECTS.split())
_WORN = frozenset({"wearing", "wears", "wear", "worn", "dressed"})
_MAX_PHRASE_WORDS = 6


def find_caption_traits(caption: str, class_noun: str) -> frozenset[str]:
    """The traits that a caption gives to the subject: "brown", of "a brown dog on green grass".

    Words before the class noun, after "is" and "made of" behind it, before a part of a body or of a
    thing ("white paws"), and tags that are nothing else.
    """
    trait_words: set[str] = set()
    for caption_clause in re.split(r"[,.;:!?]", caption.lower()):
        clause_words = re.findall(r"\w+(?:-haired)?", caption_clause)
        trait_words.update(_find_clause_traits(clause_words, class_noun.lower().split()))
    return frozenset(_SAME.get(trait, trait) for trait in trait_words)


def _find_clause_traits(words: list[str], noun: list[str]) -> Iterator[str]:
    if words and all(word in _TRAITS or word in _DEGREES for word in words):
        yield from _TRAITS.intersection(words)
    for index, word in enumerate(words):
        if word in _PARTS and not _WORN.intersection(words[max(0, index - 5) : index]):
            yield from _find_preceding_traits(words[:index], passes=_DEGREES | _TRAITS)
    for noun_start in range(len(words) - len(noun) + 1):
        if noun and _matches_noun(words[noun_start : noun_start + len(noun)], noun):
            yield from _find_preceding_traits(words[:noun_start])
            yield from _find_predicate_traits(words[noun_start + len(noun) :])


def _matches_noun(words: list[str], noun: list[str]) -> bool:
    noun_forms = (noun[-1], noun[-1] + "s", noun[-1] + "es")
    return words[:-1] == noun[:-1] and words[-1] in noun_forms


def _find_preceding_traits(words: list[str], passes: frozenset[str] | None = None) -> Iterator[str]:
    """Traits of the phrase that ends with these words; passes: the words it goes on over"""
    for word in reversed(words[-_MAX_PHRASE_WORDS:]):
        if word in _TRAITS:
            yield word
        elif word in _BEFORE_PHRASE or (passes is not None and word not in passes):
            return


def _find_predicate_traits(words: list[str]) -> Iterator[str]:
    """Traits of "is brown and white", "that is brown", "made of red leather"."""
    predicate = words[1:] if words[:1] in (["that"], ["which"]) else words
    if predicate[:1] in (["is"], ["are"]):
        predicate = predicate[1:]
    if predicate[:2] == ["made", "of"]:
        predicate = predicate[2:]
    elif len(predicate) == len(words):
        return
    for word in predicate:
        if word in _TRAITS:
            yield word
        elif word not in _DEGREES:
            return
