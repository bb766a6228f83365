"""Presets: the published numbers, rows that inherit, variants, and what a model without one takes over."""

from __future__ import annotations

from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import pytest
from tests.models import tiny

from factpatch import METHODS, Recipe, Ridge
from factpatch.methods import Method, settings_of, with_settings
from factpatch.model.architectures import ARCHITECTURES
from factpatch.presets.preset import (
    Match,
    Preset,
    load_presets,
    nearest,
    preset_for,
    preset_named,
    read_preset,
)
from factpatch.recipe import Choice, choose

PRESETS = {preset.model: preset for preset in load_presets()}

# The paper's table of settings: layers; steps, lr, clamp, λ; AlphaEdit's L2, even and boundary.
PUBLISHED: dict[str, tuple[list[int], int, float, float, float, float, float]] = {
    "GPT2-XL": ([13, 14, 15, 16, 17], 20, 0.5, 0.75, 20000, 10, 80),
    "GPT-J-6B": ([3, 4, 5, 6, 7, 8], 25, 0.5, 0.75, 15000, 10, 95),
    "Llama-3-8B": ([4, 5, 6, 7, 8], 25, 0.1, 0.75, 15000, 10, 1),
}
# PMET: clamp, λ plain, λ with BLUE.
PMET = {"GPT2-XL": (2, 10000, 10000), "GPT-J-6B": (0.75, 15000, 1000), "Llama-3-8B": (0.75, 15000, 15000)}
# With BLUE where the plain row says something else, by model.
ON_ALPHAEDIT = {"alphaedit-blue", "alphaedit-nas-blue", "alphaedit-sphere-blue"}
MORE_THAN_THE_SPREAD = {
    "GPT2-XL": ON_ALPHAEDIT,
    "GPT-J-6B": {*ON_ALPHAEDIT, "pmet-blue"},
    "Llama-3-8B": ON_ALPHAEDIT,
    "SmolLM2-135M": {*ON_ALPHAEDIT, "memit-blue", "prune-blue", "pmet-blue", "encore-blue", "lyaplock-blue"},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "GPT2-XL": {"model_type": "gpt2", "n_layer": 48, "n_embd": 1600},
    "GPT-J-6B": {"model_type": "gptj", "n_layer": 28, "n_embd": 4096},
    "Llama-3-8B": {
        "model_type": "llama",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
    },
    "Qwen2.5-Coder-0.5B": {
        "model_type": "qwen2",
        "num_hidden_layers": 24,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
    },
    "SmolLM2-135M": {
        "model_type": "llama",
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
    },
}
OF_THE_PAPER = [f"{plain}{blue}" for plain in ("memit", "prune", "rect", "alphaedit", "pmet") for blue in ("", "-blue")]
MADE_UP = """
model: Made-up
match: {model_type: llama, num_hidden_layers: 10, hidden_size: 64}
critical_layers: [2, 4]
source: nowhere
common: {target.steps: 7, solver.weight: 5}
methods:
  memit: {target.clamp: 2}
  memit-blue: {inherit: memit, target.clamp: 3}
  rect: {inherit: memit-blue, solver.weight: 6}
  alphaedit: {solver.l2: 4}
variants:
  other:
    memit: {target.clamp: 9, target.steps: 8}
    alphaedit: {}
"""


def applied(preset: Preset, method: str, variant: str | None = None) -> Method:
    return with_settings(METHODS[method], preset.settings(method, variant))


@pytest.mark.parametrize("model", PUBLISHED)
@pytest.mark.parametrize("method", OF_THE_PAPER)
def test_a_preset_holds_the_published_numbers(model: str, method: str) -> None:
    layers, steps, rate, clamp, weight, even, boundary = PUBLISHED[model]
    blue = method.endswith("-blue")
    if method.startswith("pmet"):
        clamp, weight = PMET[model][0], PMET[model][1 + blue]
    found = settings_of(applied(PRESETS[model], method))
    assert PRESETS[model].critical_layers == layers
    names = ("steps", "learning_rate", "clamp", "weight_decay", "kl_factor", "stop_loss")
    assert [found["target"][name] for name in names] == [steps, rate, clamp, 0.5, 0.0625, 0.05]
    if method.startswith("alphaedit"):
        solver = {"class": "NullSpace", "threshold": 0.02, "l2": boundary if blue else even}
    else:
        solver = {"class": "Ridge", "weight": weight}
    assert found["solver"] == solver
    if method.startswith("rect"):
        assert found["regularizer"]["keep"] == 0.4


@pytest.mark.parametrize(
    ("variant", "plain", "blue"), [("large-batch-counterfact", 6000, 1000), ("large-batch-zsre", 4500, 4500)]
)
def test_pmet_on_gpt_j_has_variants_for_large_batches(variant: str, plain: float, blue: float) -> None:
    for method, weight in (("pmet", plain), ("pmet-blue", blue)):
        found = PRESETS["GPT-J-6B"].settings(method, variant)
        assert found == {
            "target.steps": 30,
            "target.learning_rate": 0.2,
            "target.clamp": 0.75,
            "target.weight_decay": 0.5,
            "target.kl_factor": 1,
            "solver.weight": weight,
        }
    assert PRESETS["GPT-J-6B"].settings("memit", variant) == PRESETS["GPT-J-6B"].settings("memit")


def test_the_methods_for_long_sessions_have_the_numbers_published_for_llama_3() -> None:
    found = {name: settings_of(applied(PRESETS["Llama-3-8B"], name)) for name in ("encore", "alphaedit-sphere-blue")}
    encore, sphere = found.values()
    assert encore["solver"] == {"class": "Ridge", "weight": 15000, "norm_weight": 20}
    assert (encore["target"]["learning_rate"], encore["target"]["enough_predictions"]) == (0.5, 2)
    assert sphere["regularizer"] == {"class": "SparePrincipal", "share": 0.5, "strength": 0.5}
    assert sphere["solver"]["l2"] == 1
    for model in PUBLISHED:
        lyaplock = settings_of(applied(PRESETS[model], "lyaplock-blue"))["solver"]
        assert lyaplock == {"class": "BoundedRidge", "weight": 1000, "bound": 60}
    gpt2 = settings_of(applied(PRESETS["GPT2-XL"], "encore"))
    assert (gpt2["target"]["enough_predictions"], gpt2["solver"]["norm_weight"]) == (4, 10)


def test_an_assumed_preset_leaves_out_what_failed_on_other_models() -> None:
    own, assumed = PRESETS["SmolLM2-135M"], preset_for(tiny("qwen2"))
    assert assumed.assumed
    assert own.settings("memit-blue").keys() - assumed.settings("memit-blue").keys() == {"target.apart"}


def test_the_embedded_model_has_the_numbers_that_were_swept() -> None:
    adam = {"target.steps": 25, "target.enough_steps": 12, "target.stride": 0, "target.shortest": False}
    asked = {"target.contexts": ["prompt", "question", "chat", "answered"], "target.apart": True}
    common = {**asked, "target.steps": 8, "target.enough_steps": 6, "target.stride": 0.3, "target.shortest": True}
    weights = dict.fromkeys(("memit", "rect", "rect-blue", "prune", "encore", "lyaplock"), 500)
    weights |= {
        "memit-blue": 1500,
        "prune-blue": 1500,
        "encore-blue": 1500,
        "lyaplock-blue": 1500,
        "pmet": 50,
        "pmet-blue": 50,
    }
    expected = {name: {**common, "solver.weight": weight} for name, weight in weights.items()}
    expected["pmet"] |= adam
    expected["pmet-blue"] |= {**adam, "target.clamp": 2}
    for part in ("", "-nas", "-sphere"):
        for spread, l2 in (("", 2), ("-blue", 15)):
            expected[f"alphaedit{part}{spread}"] = {**common, "solver.threshold": 0.02, "solver.l2": l2}
    preset = PRESETS["SmolLM2-135M"]
    assert {name: preset.settings(name) for name in expected} == expected
    published = {"target.contexts": ["prompt", "prefixes"], **adam}
    for name, settings in expected.items():
        assert preset.settings(name, "published-contexts") == {**settings, **published}
    shared = {"solver.weight": 700, "target.clamp": 0.65, "spread.together": 3}
    assert preset.settings("memit-blue", "shared-targets") == {**expected["memit-blue"], **shared}
    brief = {"target.stride": 0.15, "target.enough_steps": 8, "target.enough_predictions": 1, "target.clamp": 0.55}
    assert preset.settings("memit-blue", "long-sessions") == {**expected["memit-blue"], **shared, **brief}
    following = {"solver.rate": 5e-4, "solver.l2": 1}
    assert preset.settings("ultraedit") == following
    assert preset.settings("stableedit") == {**following, "solver.l2": 10, "solver.warm_up": 2048}
    assert preset.layers("ultraedit") == preset.layers("stableedit") == [18, 20, 22, 24, 26, 28]
    assert {name: preset.layers(name) for name in expected} == dict.fromkeys(expected, preset.critical_layers)
    assert (preset.critical_layers, preset.corpus_tokens, preset.shipped_corpus) == ([4, 5, 6, 7, 8], 15360, True)


@pytest.mark.parametrize("model", PRESETS)
def test_every_preset_speaks_of_every_method_of_the_paper_and_fits_all(model: str) -> None:
    preset = PRESETS[model]
    assert set(OF_THE_PAPER) <= set(preset.methods) <= set(METHODS)
    assert preset.source
    assert not preset.assumed
    for method in METHODS:
        for variant in (None, *preset.variants):
            found = applied(preset, method, variant)
            for name, value in preset.settings(method, variant).items():
                part, field = name.split(".")
                setting = getattr(getattr(found, part), field)
                assert (list(setting) if isinstance(setting, tuple) else setting) == value


@pytest.mark.parametrize("model", MORE_THAN_THE_SPREAD)
def test_with_equal_settings_blue_differs_from_its_plain_method_in_the_spread_alone(model: str) -> None:
    preset = PRESETS[model]

    def apart_from_the_spread(method: str, variant: str | None = None) -> dict[str, Any]:
        settings = preset.settings(method, variant)
        return {name: value for name, value in settings.items() if not name.startswith("spread.")}

    differing = set()
    for method in METHODS:
        if method.endswith("-blue"):
            plain = method.removesuffix("-blue")
            assert apart_from_the_spread(method, "equal-settings") == preset.settings(plain)
            assert preset.settings(plain, "equal-settings") == preset.settings(plain)
            if apart_from_the_spread(method) != preset.settings(plain):
                differing.add(method)
    assert differing == MORE_THAN_THE_SPREAD[model]


def test_a_row_inherits_and_lists_what_differs() -> None:
    preset = read_preset(MADE_UP)
    assert preset.settings("memit") == {"target.steps": 7, "solver.weight": 5, "target.clamp": 2}
    assert preset.settings("memit-blue") == {"target.steps": 7, "solver.weight": 5, "target.clamp": 3}
    assert preset.settings("rect") == {"target.steps": 7, "solver.weight": 6, "target.clamp": 3}


def test_a_variant_may_have_layers_for_all_methods_but_those_with_their_own() -> None:
    rows = "  deep:\n    common: {critical_layers: [3, 5], target.steps: 9}\n    rect: {critical_layers: [6]}\n"
    preset = read_preset(MADE_UP + rows)
    assert (preset.layers("memit"), preset.layers("memit", "deep"), preset.layers(None, "deep")) == (
        [2, 4],
        [3, 5],
        [3, 5],
    )
    assert (preset.layers("rect"), preset.layers("rect", "deep")) == ([2, 4], [6])
    assert preset.settings("memit", "deep") == {"target.steps": 9, "solver.weight": 5, "target.clamp": 2}
    with pytest.raises(ValueError, match=r"critical_layers=\[5, 3\]"):
        read_preset(MADE_UP + rows.replace("[3, 5]", "[5, 3]"))


def test_common_settings_hold_where_a_method_has_the_field_and_for_methods_without_a_row() -> None:
    preset = read_preset(MADE_UP)
    assert preset.settings("alphaedit") == {"target.steps": 7, "solver.l2": 4}
    assert preset.settings("pmet") == {"target.steps": 7, "solver.weight": 5}


def test_a_row_of_a_variant_stands_in_place_of_its_namesake_and_is_inherited_from_first() -> None:
    preset = read_preset(MADE_UP)
    assert preset.settings("memit", "other") == {"target.steps": 8, "solver.weight": 5, "target.clamp": 9}
    assert preset.settings("memit-blue", "other") == {"target.steps": 8, "solver.weight": 5, "target.clamp": 3}
    assert preset.settings("alphaedit", "other") == {"target.steps": 7}


def test_an_unknown_variant_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match=r"variant='ohter': Made-up has no such variant. Did you mean 'other'\?"):
        read_preset(MADE_UP).settings("memit", "ohter")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("critical_layers:", "critical_layer:", "critical_layer"),
        ("hidden_size", "hidden_sise", "hidden_sise"),
        ("target.steps: 7", "target.step: 7", "common: no method that the preset lists has a setting 'target.step'"),
        ("{target.clamp: 2}", "{target.clmp: 2}", "Did you mean 'clamp'"),
        ("{target.clamp: 2}", "{target.clamp: -2}", "must be positive"),
        ("target.steps: 8", "target.stps: 8", "Did you mean 'steps'"),
        (
            "    alphaedit: {}",
            "    common: {target.stirde: 0}",
            "common: no method that the preset lists has a setting",
        ),
        ("{solver.l2: 4}", "{solver.weight: 4}", "no field 'weight'"),
        ("memit-blue: {inherit", "memit-bleu: {inherit", "Did you mean 'memit-blue'"),
        (
            "inherit: memit,",
            "inherit: memti,",
            "memit-blue: inherits from 'memti', which is no other row. Did you mean",
        ),
        ("inherit: memit,", "inherit: rect,", "which is no other row"),
        ("inherit: memit,", "inherits: memit,", "'inherits'"),
        ("[2, 4]", "[4, 2]", "critical_layers"),
        ("[2, 4]", "[2, 10]", "critical_layers"),
        ("[2, 4]", "[]", "critical_layers"),
        ("{solver.l2: 4}", "{critical_layers: [4, 10]}", r"critical_layers=\[4, 10\]"),
        ("{solver.l2: 4}", "{critical_layers: 4-8}", "critical_layers=4-8"),
    ],
)
def test_a_preset_with_a_mistake_is_refused(old: str, new: str, message: str) -> None:
    assert old in MADE_UP
    with pytest.raises(ValueError, match=message):
        read_preset(MADE_UP.replace(old, new))


@pytest.mark.parametrize("model", CONFIGS)
def test_a_preset_fits_its_model_and_no_other(model: str) -> None:
    from transformers import AutoConfig

    given = dict(CONFIGS[model])
    config = AutoConfig.for_model(given.pop("model_type"), **given)
    assert [preset.model for preset in load_presets() if preset.match.fits(config)] == [model]


def test_the_first_smollm_is_not_taken_for_the_second() -> None:
    from transformers import LlamaConfig

    sizes = {"num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "vocab_size": 49152}
    assert not PRESETS["SmolLM2-135M"].match.fits(LlamaConfig(**sizes, max_position_embeddings=2048))


def test_llama_3_1_is_not_taken_for_llama_3() -> None:
    config = SimpleNamespace(**{**CONFIGS["Llama-3-8B"], "max_position_embeddings": 131072})
    assert not any(preset.match.fits(config) for preset in load_presets())


def test_a_preset_is_found_by_any_of_its_names_in_any_case() -> None:
    assert preset_named("llama-3-8b-instruct") is preset_named("Llama-3-8B") is PRESETS["Llama-3-8B"]
    with pytest.raises(ValueError, match="Did you mean 'gpt2-xl'"):
        preset_named("gpt2-lx")


@pytest.mark.parametrize(
    ("model_type", "width", "depth", "expected"),
    [
        ("gpt2", 768, 12, "GPT2-XL"),  # the same family, however far
        ("llama", 8192, 80, "Llama-3-8B"),
        ("llama", 960, 32, "SmolLM2-135M"),
        ("llama", 2048, 16, "Llama-3-8B"),
        ("mistral", 4096, 32, "Llama-3-8B"),  # GPT-J is as wide, but has other modules
        ("qwen2", 2048, 36, "Qwen2.5-Coder-0.5B"),
        ("qwen2", 3584, 28, "Llama-3-8B"),  # of another family, and twice as near
        ("qwen3", 896, 24, "Qwen2.5-Coder-0.5B"),
        ("gpt_neox", 5120, 36, "Llama-3-8B"),  # of no family with a preset: the width, then the depth
        ("gpt_neox", 2048, 24, "GPT2-XL"),
        ("opt", 512, 24, "SmolLM2-135M"),
    ],
)
def test_the_nearest_preset_is_of_the_family_then_of_like_modules_then_of_like_size(
    model_type: str, width: int, depth: int, expected: str
) -> None:
    assert nearest(load_presets(), model_type, width, depth).model == expected


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (30, [4, 5, 6, 7, 8]),
        (60, [8, 10, 12, 14, 16]),
        (45, [6, 8, 9, 11, 12]),
        (28, [4, 5, 6, 7, 8]),
        (12, [0, 1, 2, 3, 4]),
        (4, [0, 1, 2, 3]),
        (1, [0]),
    ],
)
def test_critical_layers_scale_with_the_depth(depth: int, expected: list[int]) -> None:
    assert PRESETS["SmolLM2-135M"].layers_for(depth) == expected


@pytest.mark.parametrize("model", PRESETS)
def test_scaled_layers_are_distinct_ascending_and_inside(model: str) -> None:
    preset = PRESETS[model]
    assert preset.layers_for(preset.match.num_hidden_layers) == preset.critical_layers
    for depth in range(1, 130):
        layers = preset.layers_for(depth)
        assert layers == sorted(set(layers))
        assert 0 <= layers[0] <= layers[-1] < depth
        assert len(layers) == min(len(preset.critical_layers), depth)


def test_the_last_layer_stays_inside_a_shallower_model() -> None:
    preset = Preset("deep", Match("llama", 48, 64), [0, 47], "nowhere")
    assert preset.layers_for(4) == [1, 2]
    assert replace(preset, critical_layers=[47]).layers_for(4) == [3]


def test_a_model_without_a_preset_gets_the_nearest_one_without_its_corpus() -> None:
    found = preset_for(tiny("llama"))
    assert (found.model, found.assumed) == ("SmolLM2-135M", True)
    assert (found.corpus_tokens, found.shipped_corpus) == (None, False)
    assert not PRESETS["SmolLM2-135M"].assumed


def chosen(preset: Preset, method: str | None, depth: int = 20, **fields: Any) -> Choice:
    """What a recipe comes to for a model that the preset fits."""
    config = SimpleNamespace(**asdict(preset.match))
    lm: Any = SimpleNamespace(
        name="mine", num_layers=depth, config=config, architecture=ARCHITECTURES["llama"],
        check_layers=lambda layers: layers, experts=lambda layer: False,
    )  # fmt: skip
    return choose(Recipe(method=method or METHODS["memit"], preset=preset, **fields), lm)


def warnings(caplog: Any, preset: Preset | None = None, method: str | None = "memit-blue", **fields: Any) -> list[str]:
    caplog.clear()
    chosen(preset or replace(read_preset(MADE_UP), assumed=True), method, **fields)
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_the_warning_names_all_that_is_assumed_and_how_to_replace_it(caplog: Any) -> None:
    assert warnings(caplog) == [
        "there is no preset for mine; assumed from that of Made-up, the nearest one: critical_layers=[4, 8], scaled "
        "from its 2, 4 of 10 (critical_layers= or --layers replaces them); the settings of memit-blue, target.steps=7, "
        "target.clamp=3 (settings= or --set replaces them). Measure on a few facts before relying on it, or find "
        "settings with factpatch tune."
    ]


def test_the_warning_leaves_out_what_is_given(caplog: Any) -> None:
    (warning,) = warnings(caplog, critical_layers=[1], settings={"target.steps": 3})
    assert "critical_layers=[" not in warning
    assert "target.steps" not in warning
    assert "target.clamp=3" in warning
    (warning,) = warnings(caplog, method=None)
    assert "critical_layers=[4, 8]" in warning
    assert "the settings of" not in warning


def test_nothing_assumed_is_nothing_to_warn_of(caplog: Any) -> None:
    assert warnings(caplog, method=None, critical_layers=[1]) == []
    every = {"target.steps": 3, "target.clamp": 1}
    assert warnings(caplog, settings=every, critical_layers=[1]) == []
    assert warnings(caplog, preset=read_preset(MADE_UP)) == []


def test_an_effort_that_replaces_settings_of_a_variant_is_warned_of(caplog: Any) -> None:
    settings = {"target.steps": 28, "target.enough_steps": 0}
    preset = replace(read_preset(MADE_UP), variants={"long": {"common": settings}})
    assert warnings(caplog, preset, variant="long", effort="quick") == [
        "effort='quick' replaces settings of the variant long, which may need them: target.steps=28 by 8, "
        "target.enough_steps=0 by 6."
    ]
    assert not warnings(caplog, preset, variant="long")
    assert not warnings(caplog, preset, effort="quick")
    assert not warnings(caplog, preset, variant="long", effort="quick", settings=settings)


def test_the_solver_of_an_assumed_preset_is_scaled_unless_something_is_said_of_it() -> None:
    assumed = replace(read_preset(MADE_UP), assumed=True)
    found = chosen(assumed, "memit")
    assert found.underived
    assert found.method.solver == METHODS["memit"].solver
    given = chosen(assumed, "memit", settings={"solver.weight": 2})
    assert (given.underived, given.method.solver) == (False, Ridge(weight=2))
    named = chosen(assumed, "memit", variant="other")
    assert (named.underived, named.method.solver) == (False, Ridge(weight=5))
    assert not chosen(read_preset(MADE_UP), "memit").underived
    silent = replace(assumed, assumed=False, common={"target.steps": 7})
    assert chosen(silent, "memit").underived  # its preset says nothing of the solver
    assert not chosen(silent, "memit", settings={"solver.weight": 2}).underived
    assert not chosen(assumed, None).underived


def test_settings_that_no_second_moment_gives_are_taken_from_the_nearest_preset() -> None:
    rows = "alphaedit: {solver.l2: 4}\n  ultraedit: {solver.rate: 0.002}"
    assumed = replace(read_preset(MADE_UP.replace("alphaedit: {solver.l2: 4}", rows)), assumed=True)
    choice = chosen(assumed, "ultraedit")
    assert (choice.underived, choice.method.solver.rate) == (False, 0.002)  # type: ignore[attr-defined]


def test_a_row_may_have_layers_of_its_own_which_its_heirs_share() -> None:
    rows = "alphaedit: {solver.l2: 4, critical_layers: [7, 9]}\n  alphaedit-blue: {inherit: alphaedit}"
    preset = read_preset(MADE_UP.replace("alphaedit: {solver.l2: 4}", rows))
    for method in ("alphaedit", "alphaedit-blue"):
        assert chosen(preset, method, 20).critical_layers == (14, 18)
        assert preset.settings(method) == {"target.steps": 7, "solver.l2": 4}
    for method in ("memit", None):
        assert chosen(preset, method, 20).critical_layers == (4, 8)
    assert chosen(preset, "alphaedit", 20, variant="other").critical_layers == (4, 8)
    assert chosen(preset, "alphaedit", 20, critical_layers=[3]).critical_layers == (3,)


def test_a_choice_says_where_it_is_from() -> None:
    preset = read_preset(MADE_UP)
    choice = chosen(preset, "memit", 10, variant="other", settings={"target.clamp": 1})
    target = replace(METHODS["memit"].target, steps=8, clamp=1)
    assert choice.method == replace(METHODS["memit"], target=target, solver=Ridge(weight=5))
    assert choice.critical_layers == (2, 4)
    assert choice.origin == {"model": "Made-up", "variant": "other", "assumed": False}
    by_hand = chosen(preset, None, 10, settings={"target.clamp": 1}, critical_layers=[3])
    assert by_hand.method.target == replace(METHODS["memit"].target, clamp=1)
    assert (by_hand.critical_layers, by_hand.origin) == ((3,), None)


def test_a_variant_that_does_not_concern_the_method_is_logged_to_change_nothing(caplog: Any) -> None:
    with caplog.at_level("INFO", logger="factpatch"):
        chosen(PRESETS["GPT-J-6B"], "memit", 28, variant="large-batch-zsre")
    assert "the variant large-batch-zsre of the preset changes nothing for memit" in caplog.text
