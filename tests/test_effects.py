"""A setting in vain is refused, if somebody set it: every setting of a run is in the table or always effective."""

from __future__ import annotations

import dataclasses

import pytest

from fedforget.config import _SECTIONS, compose, to_yaml
from fedforget.effects import EFFECTS, value_of
from fedforget.found import strategy_names
from fedforget.strategy import find

# Settings that have an effect whatever the others are. A new setting must be entered here or in `EFFECTS`.
ALWAYS = {
    "task": "source mode record_column",  # the class itself refuses them where they do not fit
    "model": "name width",
    "partition": "clients holdout",
    "corruption": "kind",
    # What the scope does not have is refused there.
    "request": "scope clients owners classes samples rows records share after_round then",
    "local": "optimizer lr weight_decay lr_decay steps batch_size sd_gamma",
    "learning": "learner options rounds fraction min_share timeout",  # options: checked against the learner's own
    "history": "record",
    "evaluation": "level seeds max_examples durability relearn checkpoints primary",
    "tuning": "trials",
    "engine": "transport mode precision device nodes trajectories",
}
DATA = "task=mnist task.path=/data/x"
HUB = "task=femnist"

# For each entry of the table a setting in vain, and the same setting where it has an effect.
CASES = {
    "task.path": ("task.path=/data/x", DATA),
    "task.root": ("task.root=/data/x", "task=fashion_mnist task.root=/data/x"),
    "task.input_column": ("task.input_column=x", f"{DATA} task.input_column=x"),
    "task.label_column": ("task=fashion_mnist task.label_column=x", f"{HUB} task.label_column=x"),
    "task.id_column": (f"{HUB} task.id_column=x", f"{HUB} partition=natural task.id_column=x"),
    "task.test_share": ("task=fashion_mnist task.test_share=0.3", "task.test_share=0.3"),
    "task.max_train": ("", "task.max_train=9"),  # with holder the class itself refuses it
    "task.max_test": ("", "task.max_test=9"),
    "partition.kind": ("task=holder partition.kind=shards", "partition.kind=shards"),
    "partition.alpha": ("partition=iid partition.alpha=0.1", "partition.alpha=0.1"),
    "partition.min_examples": ("task=holder partition.min_examples=9", "partition.min_examples=9"),
    "partition.classes_per_client": (
        "partition.classes_per_client=3",
        "partition=pathological partition.classes_per_client=3",
    ),
    "partition.shards_per_client": ("partition.shards_per_client=3", "partition=shards partition.shards_per_client=3"),
    "partition.growth": ("partition.growth=square", "partition=sizes partition.growth=square"),
    "corruption.clients": ("corruption.clients=[1]", "corruption=trigger corruption.clients=[1]"),
    "corruption.share": ("corruption=canary corruption.share=0.3", "corruption=noise corruption.share=0.3"),
    "corruption.target_class": (
        "corruption=noise corruption.target_class=1",
        "corruption=trigger corruption.target_class=1",
    ),
    "corruption.patch": ("corruption.patch=2", "corruption=trigger corruption.patch=2"),
    "corruption.classes": (
        "corruption=trigger corruption.classes=[2,3]",
        "corruption=label_swap corruption.classes=[2,3]",
    ),
    "corruption.deviation": ("corruption.deviation=1", "corruption=noise corruption.deviation=1"),
    "corruption.canaries": ("corruption=noise corruption.canaries=9", "corruption=canary corruption.canaries=9"),
    "corruption.canary_label": ("corruption.canary_label=natural", "corruption=canary corruption.canary_label=natural"),
    "local.momentum": ("local.optimizer=adam local.momentum=0.9", "local.momentum=0.9"),
    "local.epochs": ("local.steps=5 local.epochs=2", "local.epochs=2"),
    "history.dtype": ("history.record=globals history.dtype=float16", "history.record=targets history.dtype=float16"),
    "history.keep": ("history.record=nothing history.keep=0.5", "history.record=all history.keep=0.5"),
    "history.select": (
        "history.record=all history.select=random",
        "history.record=all history.keep=0.5 history.select=random",
    ),
    "tuning.goal": ("tuning.goal=bias_removal", "tuning.trials=2 tuning.goal=bias_removal"),
    "tuning.trade_off": ("tuning.trade_off=0.5", "tuning.trials=2 tuning.trade_off=0.5"),
    "engine.workers": ("engine.transport=flower engine.workers=2", "engine.workers=2"),
    "engine.gpus_per_worker": ("engine.device=cpu engine.gpus_per_worker=0.5", "engine.gpus_per_worker=0.5"),
}  # fmt: skip


def test_every_setting_is_in_the_table_or_always_effective() -> None:
    settings = {f"{name}.{field.name}" for name, kind in _SECTIONS.items() for field in dataclasses.fields(kind)}
    always = {f"{section}.{field}" for section, fields in ALWAYS.items() for field in fields.split()}
    assert settings == always | set(EFFECTS) and not always & set(EFFECTS)
    assert set(CASES) == set(EFFECTS)


@pytest.mark.parametrize(("key", "in_vain", "effective"), [(key, *case) for key, case in CASES.items()])
def test_a_setting_in_vain_is_refused_and_where_it_works_it_is_taken(key: str, in_vain: str, effective: str) -> None:
    assert EFFECTS[key].holds(compose("quickstart", effective))
    if in_vain:
        with pytest.raises(ValueError) as error:
            compose("quickstart", in_vain)
        assert str(error.value).startswith(f"{key} is ") and f"only with {EFFECTS[key].words}" in str(error.value)


def test_the_sentence_says_what_was_probably_meant() -> None:
    with pytest.raises(ValueError) as error:
        compose("quickstart", "task.path=/data/x")
    assert str(error.value) == (
        "task.path is '/data/x', but it has an effect only with task.source=folder, hub or torchvision; "
        "did you mean task=mnist task.path=/data/x (or task.source=folder)?"
    )


@pytest.mark.parametrize(
    "overrides",
    [
        "'task.path=\"\"'",
        "partition=iid partition.alpha=0.3",
        "local.optimizer=adam local.momentum=0.0",
        "tuning.goal=privacy",
    ],
)
def test_a_default_may_be_said(overrides: str) -> None:
    compose("quickstart", overrides)


def test_the_automatic_record_is_that_of_the_strategies() -> None:
    compose("quickstart", "history.record=auto history.keep=0.5 strategies=[finetune,federaser]")
    with pytest.raises(ValueError, match="history.keep is 0.5, but it has an effect only with history.record=targets"):
        compose("quickstart", "history.record=auto history.keep=0.5 strategies=[finetune]")


def test_an_experiment_is_held_to_it_and_a_file_of_a_group_is_not(tmp_path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("partition: {use: iid, alpha: 0.1}\n")
    with pytest.raises(ValueError, match="partition.alpha is 0.1, but it has an effect only with partition.kind=dir"):
        compose(str(mine))
    config = compose("quickstart", f"{HUB} partition=iid")  # its file names a column that only `natural` reads
    assert config.task.id_column == "writer_id" and not EFFECTS["task.id_column"].holds(config)
    mine.write_text(to_yaml(config))  # a copy of the whole configuration says everything
    assert value_of(compose(str(mine)), "task.id_column") == "writer_id"


@pytest.mark.parametrize(
    ("in_vain", "words", "effective"),
    [
        ("influence scale=5.0", "strategy.influence.solver=lissa", "influence scale=5.0 solver=lissa"),
        ("influence tau=1e-3", "strategy.influence.order=1", "influence tau=1e-3 order=1"),
        ("influence order=1 damping=0.1", "strategy.influence.order=2", "influence damping=0.1"),
        ("newton cutoff=1e-5", "strategy.newton.solver=pseudo", "newton cutoff=1e-5 solver=pseudo"),
        ("newton solver=pseudo damping=1.0", "strategy.newton.solver=cg or explicit", "newton damping=1.0"),
        ("federaser calibration=false ratio=0.2", "strategy.federaser.calibration=true", "federaser ratio=0.2"),
        ("fedrecovery epsilon=2.0", "strategy.fedrecovery.distance above 0", "fedrecovery epsilon=2.0 distance=0.1"),
        (
            "partial_amnesiac keep=1.0 select=random",
            "strategy.partial_amnesiac.keep below 1",
            "partial_amnesiac select=random",
        ),
    ],
)
def test_an_option_that_another_one_switches_off_is_refused(in_vain: str, words: str, effective: str) -> None:
    def composed(text: str) -> None:
        name, *options = text.split()
        compose("quickstart", " ".join([f"strategies=[{name}]", *(f"strategy.{name}.{each}" for each in options)]))

    composed(effective)
    with pytest.raises(ValueError) as error:
        composed(in_vain)
    assert f"it has an effect only with {words}" in str(error.value)


@pytest.mark.parametrize("name", strategy_names())
def test_what_an_option_needs_are_options_of_the_same_strategy(name: str) -> None:
    options = {option.name: option for option in dataclasses.fields(find(name).Config)}
    for option in options.values():
        for other, wanted in option.metadata.get("needs", {}).items():
            choices = options[other].metadata.get("choices", (True, False))
            assert isinstance(wanted, str) or set(wanted) <= set(choices)
            assert not isinstance(wanted, str) or wanted.split()[0] in ("above", "below")
