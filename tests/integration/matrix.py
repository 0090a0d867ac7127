"""The settings of a training that have to work together, and rows with every pair of them."""

from itertools import combinations, product

from allpairspy import AllPairs

FACTORS: dict[str, dict[str, list[str]]] = {
    "validation": {
        "none": [],
        "validation": [
            "validation.every=2", "validation.timesteps=4", "validation.class_images=1",
        ],
    },
    "accumulate": {"1": [], "2": ["train.accumulate=2"]},
    "memory": {"kept": [], "recomputed": ["train.gradient_checkpointing=true"]},
    "prior": {"images": [], "output": ["prior.kind=output"], "both": ["prior.kind=both"]},
    "workers": {"1": [], "2": ["cluster.workers=2"]},
    "precision": {
        "32": [],
        "bf16": ["train.precision=bf16-mixed"],
        "bf16 weights": ["train.precision=bf16-mixed", "train.weight_dtype=bfloat16"],
    },
    "method": {
        "full": [],
        "lora": ["train.method=lora"],
        "dora": ["train.method=lora", "train.text_encoder=true", "train.lora.dora=true"],
        "loha": ["train.method=lora", "train.lora.kind=loha"],
        "lokr": [
            "train.method=lora", "train.text_encoder=true", "train.lora.kind=lokr",
            "train.lora.lokr_factor=4",
        ],
        "loraplus": [
            "train.method=lora", "train.lora.loraplus_lr_ratio=4", "train.lora.rslora=true",
            "train.lora.rank_pattern={to_q: 4}",
        ],
        "kv": ["train.method=kv"],
        "word": ["identifier.kind=learned", "train.unet=false", "train.text_encoder=false"],
        "lora and word": ["identifier.kind=learned", "train.method=lora"],
    },
    "strategy": {
        "ddp": [],
        "fsdp2": ["train.strategy=fsdp2"],
        **{
            f"zero{stage}": ["train.strategy=deepspeed", f"train.deepspeed.stage={stage}"]
            for stage in (1, 2, 3)
        },
    },
    "choice": {"last": [], "best": ["choice.rule=best"]},
    "captions": {
        "given": [],
        "varied": [
            'subject.prompts=["{identifier} {class_noun}, a, b, c"]',
            "captions.shuffle=true", "captions.tag_dropout=0.3", "captions.variants=4",
        ],
    },
    "optimizer": {
        "adamw": [],
        "adafactor": ["train.optimizer=adafactor"],
        "lion": ["train.optimizer=lion", "train.lr=1e-4"],
        "schedulefree": ["train.optimizer=schedulefree-adamw"],
    },
    "average": {"none": [], "average": ["train.ema_decay=0.9"]},
    "mask": {
        "none": [],
        "masked": ["train.mask_background=0.3"],
        "kept background": ["train.mask_background=0.3", "train.mask_background_target=output"],
    },
    "samples": {"none": [], "samples": ["sample.every=2", "sample.num_inference_steps=2"]},
}  # fmt: skip

Row = dict[str, str]


def is_refused(row: Row) -> bool:
    """Whether a row, or the beginning of one, is refused as it is read."""
    if row.get("method") == "word" and row.get("prior", "images") != "images":
        return True  # a word alone changes nothing of what would be kept
    if row.get("precision") == "bf16 weights" and is_unrounded(row):
        return True
    strategy, optimizer = row.get("strategy", "ddp"), row.get("optimizer", "adamw")
    if optimizer in ("adafactor", "schedulefree") and strategy != "ddp":
        return True  # their states are no shards of the weights
    if optimizer == "lion" and strategy.startswith("zero"):
        return True
    if row.get("average") != "average":
        return False
    return strategy != "ddp" or optimizer == "schedulefree"


def is_unrounded(row: Row) -> bool:
    """Whether a row's weights can't be rounded at random."""
    return (
        row.get("strategy", "ddp") != "ddp"
        or row.get("optimizer") == "schedulefree"
        or row.get("method") in ("loha", "lokr", "word")
    )


def row_id(row: Row) -> str:
    """A row in words, less what is nothing."""
    values = [
        row["strategy"],
        row["method"],
        row["precision"],
        row.get("workers", "1"),
        *row.values(),
    ]
    words = [
        value
        for value in values
        if value not in ("none", "kept", "last", "images", "given", "1", "32", "adamw")
    ]
    return "-".join(dict.fromkeys(words))


def overrides_of(row: Row) -> list[str]:
    """What a row sets."""
    return [setting for factor, value in row.items() for setting in FACTORS[factor][value]]


def list_rows() -> list[Row]:
    """Rows in which every pair of two factors' values comes, but those that are refused."""
    names = list(FACTORS)
    pairs = AllPairs(
        [list(values) for values in FACTORS.values()],
        filter_func=lambda values: not is_refused(dict(zip(names, values, strict=False))),
    )
    rows = [dict(zip(names, values, strict=True)) for values in pairs]
    # It loses a pair here and there to what is refused.
    lost_pairs = [
        values
        for one, other in combinations(names, 2)
        for pair in product(FACTORS[one], FACTORS[other])
        if not is_refused(values := dict(zip((one, other), pair, strict=True)))
        and not any(values.items() <= row.items() for row in rows)
    ]
    return rows + join_pairs(lost_pairs)


def join_pairs(pairs: list[Row]) -> list[Row]:
    """Rows with all pairs, as many in one as are not refused together; the rest as usual."""
    usual_row = {name: next(iter(values)) for name, values in FACTORS.items()}
    rows: list[Row] = []
    for pair in pairs:
        for index, row in enumerate(rows):
            is_free = all(row.get(name, value) == value for name, value in pair.items())
            if is_free and not is_refused(usual_row | row | pair):
                rows[index] = row | pair
                break
        else:
            rows.append(pair)
    return [usual_row | row for row in rows]
