"""What users do to a pipeline, and to files, after a delta was attached or a model was wrapped."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.tuners.lora.model import LoraModel

from sepme.baselines import BASELINES
from sepme.cli._prompts import read_prompts
from sepme.composition import Composition, applied
from sepme.concept import Catalogue, Concept, catalogue_of
from sepme.delta import ConceptDelta, DenseDelta
from sepme.erasure import _DRAWN, ErasureSettings, erase
from sepme.errors import SepmeWarning
from sepme.exchange import export
from sepme.jobs import plan
from sepme.model import Backbone
from sepme.scenes.tables import read_table
from sepme.training import Trainer
from sepme.widgets.mixer import Mixer, MixerState
from tests.borders.test_pipeline import lora
from tests.miniature import (
    EXACT,
    FROM_ZERO,
    NEON,
    QUICK,
    QUIET,
    fresh,
    latents,
    others,
    three_deltas,
)
from tests.refusals import refused
from tests.tiny import make_tiny_pipeline

ESD = BASELINES["esd-x"].preset("atelier")


def neon_erased() -> tuple[Backbone, Composition]:
    backbone = fresh()
    composition = Composition(backbone, three_deltas())
    composition.erase("neon")
    return backbone, composition


def text_lora(backbone: Backbone) -> dict[str, torch.Tensor]:
    state = {}
    for name, module in backbone.pipe.text_encoder.named_modules():
        if name.endswith("q_proj"):
            state[f"text_encoder.{name}.lora_A.weight"] = torch.ones(2, module.in_features)
            state[f"text_encoder.{name}.lora_B.weight"] = torch.ones(module.out_features, 2)
    return state


def test_two_backbones_on_one_pipeline_share_what_is_attached() -> None:
    one, first = neon_erased()
    want = {}
    for name in ("neon", "ink"):
        first.set([name])
        want[name] = latents(one)
    second = Composition(Backbone(one.pipe, "again", guidance=4.0, steps=3), three_deltas()[1:2])
    second.erase("ink")
    assert torch.equal(latents(one), want["ink"])
    assert not torch.equal(want["ink"], want["neon"])
    assert one.composition is second


@pytest.mark.parametrize(
    "given", [["neon.safetensors"], {"neon": three_deltas()[0]}, None, [None], 3, "neon"]
)
def test_what_is_no_delta_is_refused_and_leaves_what_is_attached(given: object) -> None:
    backbone, composition = neon_erased()
    with refused("takes a list of ConceptDeltas"):
        Composition(backbone, given)
    assert backbone.composition is composition
    assert composition.active == ("neon",)


def test_a_dense_delta_is_refused_before_anything_is_closed() -> None:
    backbone, composition = neon_erased()
    delta = three_deltas()[0]
    changes = {f"{path}.weight": delta.dense(path) for path in delta.paths}
    with refused("DenseDelta is none"):
        Composition(backbone, [DenseDelta(changes, delta.provenance)])
    assert backbone.composition is composition


def test_an_adapter_of_the_users_that_has_our_name_stays_theirs() -> None:
    backbone = fresh()
    backbone.unet.add_adapter(LoraConfig(target_modules=["to_q"]), adapter_name="sepme_0")
    with Composition(backbone, three_deltas()) as composition:
        composition.erase("neon")
        latents(backbone)
    assert [*backbone.unet.peft_config] == ["sepme_0"]


def test_what_writes_into_an_adapter_leaves_the_delta_alone() -> None:
    backbone, _ = neon_erased()
    delta = three_deltas()[0]
    before = {path: factor.clone() for path, factor in delta.down.items()}
    for name, parameter in backbone.unet.named_parameters():
        if "lora_A" in name:
            parameter.data.add_(1)
    assert all(torch.equal(delta.down[path], before[path]) for path in before)


def test_fused_projections_are_refused_at_the_next_picture() -> None:
    backbone, _ = neon_erased()
    backbone.pipe.fuse_qkv_projections()
    with refused("fuse"):
        latents(backbone)


def test_an_adapter_on_the_text_encoder_is_seen_at_the_next_picture() -> None:
    backbone, composition = neon_erased()
    backbone.pipe.load_lora_weights(text_lora(backbone), adapter_name="words")
    composition.set(["neon"])
    with refused("text encoder"):
        latents(backbone)


def test_a_unet_that_is_compiled_after_wrapping_keeps_its_names() -> None:
    backbone, plain = fresh(), fresh()
    backbone.pipe.unet = torch.compile(backbone.pipe.unet, backend="eager")
    assert backbone.fingerprint == plain.fingerprint
    delta = erase(backbone, NEON, others(NEON), EXACT)
    assert delta.digest == erase(plain, NEON, others(NEON), EXACT).digest


@pytest.mark.parametrize(("strength", "active"), [(0.1 + 0.2 - 0.3, ()), (1 / 3, ("neon",))])
def test_strengths_that_rounding_made(strength: float, active: tuple[str, ...]) -> None:
    backbone, composition = neon_erased()
    composition.set({"neon": strength})
    latents(backbone)
    assert composition.active == active


def test_a_picture_that_is_not_finite_is_said() -> None:
    backbone, composition = neon_erased()
    composition.set({"neon": 1e30})
    with pytest.warns(SepmeWarning, match="not finite"):
        latents(backbone)


def test_who_draws_while_a_model_is_trained_waits() -> None:
    backbone, composition = neon_erased()
    erased, drawn = latents(backbone), []
    thread = threading.Thread(target=lambda: drawn.extend(latents(backbone) for _ in range(4)))
    thread.start()
    erase(backbone, NEON, others(NEON), QUICK, trainer=QUIET)
    thread.join()
    assert all(torch.equal(picture, erased) for picture in drawn)
    assert composition.active == ("neon",)


def test_a_name_outweighs_an_alias() -> None:
    concepts = {name: Concept(name, (name,)) for name in ("neon", "ink")}
    assert Catalogue(concepts, {"neon": "ink", "glow": "neon"})["neon"].name == "neon"


@pytest.mark.parametrize("text", ["prompt\na boat, red\n", "prompt,seed\na boat, red,1\n"])
def test_a_prompt_that_a_comma_would_cut_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "prompts.csv").write_text(text)
    with refused("Row 2", "between double quotes"):
        read_prompts(tmp_path / "prompts.csv")


@pytest.mark.parametrize("ending", ["zip", "xz", "tar", "zst", "gz"])
def test_a_table_is_read_as_what_it_holds(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"table.csv.{ending}"
    file.write_text("kind,method\n")
    with refused("no table of scenes"):
        read_table(file)


# ---------------------------------------------------------------- switches, gradients, threads
def test_a_users_switch_is_found_as_they_left_it() -> None:
    """Off by the flag when it began or meanwhile, and on again meanwhile or after."""
    backbone = fresh()
    backbone.pipe.load_lora_weights(
        lora(backbone.unet, "unet", ("attn1.to_q",)), adapter_name="style"
    )
    styled = latents(backbone)
    for meanwhile in (True, False):
        if not meanwhile:
            backbone.pipe.disable_lora()
        composition = Composition(backbone, three_deltas())
        composition.erase("neon")
        if meanwhile:
            backbone.pipe.disable_lora()
            composition.set(["neon"])
        composition.restore_all()
        assert not torch.equal(latents(backbone), styled)
        backbone.pipe.enable_lora()
        composition.set([])
        assert torch.equal(latents(backbone), styled)
        composition.erase("neon")
        composition.close()
        composition.restore_all()
        assert backbone.pipe.get_active_adapters() == ["style"]
        assert torch.equal(latents(backbone), styled)


@pytest.mark.parametrize("trains", [True, False])
def test_what_a_user_trains_goes_on_being_trained_and_nothing_else(trains: bool) -> None:
    backbone = fresh()
    mine = LoraConfig(r=2, target_modules=["attn1.to_q"], init_lora_weights=False)
    backbone.unet.add_adapter(mine, adapter_name="mine")
    theirs = [p for name, p in backbone.unet.named_parameters() if "lora_" in name]
    for parameter in theirs:
        parameter.requires_grad_(trains)

    def trained() -> list[torch.nn.Parameter]:
        return [p for p in backbone.unet.parameters() if p.requires_grad]

    with Composition(backbone, three_deltas()) as composition:
        composition.erase("neon")
        assert len(trained()) == trains * len(theirs)
    erase(backbone, NEON, others(NEON), QUICK, trainer=QUIET)
    assert len(trained()) == trains * len(theirs)


def test_threads_do_not_draw_what_another_one_erased() -> None:
    backbone = fresh()
    composition = Composition(backbone, three_deltas())
    want = {}
    for name in ("neon", "ink"):
        with composition.erased(name):
            want[name] = latents(backbone)
    wrong = []

    def draws(name: str) -> None:
        for _ in range(3):
            with composition.erased(name):
                wrong.append(not torch.equal(latents(backbone), want[name]))

    threads = [threading.Thread(target=draws, args=(name,)) for name in want]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [False] * 6
    assert composition.active == ()


def test_a_unet_that_was_exchanged_is_given_back_whole() -> None:
    backbone, composition = neon_erased()
    unet, other = backbone.pipe.unet, make_tiny_pipeline(seed=1).unet
    backbone.pipe.unet = other
    composition.close()
    backbone.pipe.unet = unet
    assert torch.equal(latents(backbone), latents(fresh()))
    assert not hasattr(unet, "peft_config")


def test_two_pipelines_of_one_unet_share_what_is_attached() -> None:
    one, composition = neon_erased()
    pipe = StableDiffusionPipeline(**one.pipe.components, requires_safety_checker=False)
    two = Backbone(pipe, "its twin", guidance=4.0, steps=3)
    assert two.composition is composition
    composition.close()
    assert two.composition is None
    assert torch.equal(latents(two), latents(fresh()))


def test_what_could_not_be_attached_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, attach, calls = fresh(), Composition._attach, []

    def second_fails(self: Composition, *arguments: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        attach(self, *arguments)

    monkeypatch.setattr(Composition, "_attach", second_fails)
    with pytest.raises(MemoryError):
        Composition(backbone, three_deltas())
    assert backbone.composition is None
    assert not hasattr(backbone.unet, "peft_config")


def test_a_pipeline_that_is_rounded_while_a_concept_is_erased_can_be_drawn() -> None:
    backbone, composition = neon_erased()
    backbone.pipe.to(torch.float16).to(torch.float32)
    assert latents(backbone).isfinite().all()
    composition.close()


# ---------------------------------------------------------------- modes of torch, numbers, anchors
MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("mode", MODES)
def test_erasing_does_not_depend_on_the_callers_mode(mode: str) -> None:
    want = erase(fresh(), NEON, others(NEON), QUICK, trainer=QUIET)
    backbone = fresh()
    with MODES[mode]():
        delta = erase(backbone, NEON, others(NEON), QUICK, trainer=QUIET)
        composition = Composition(backbone, three_deltas())
    assert delta.digest == want.digest
    composition.erase("neon")
    composition.close()


def test_numbers_of_numpy_and_torch_are_numbers(tmp_path: Path) -> None:
    given = {"iterations": np.int64(2), "learning_rate": torch.tensor(0.5), "tau": np.float64(0.1)}
    settings = replace(QUICK, **given)
    assert [type(value) for value in asdict(settings).values()] == [
        type(value) for value in asdict(QUICK).values()
    ]
    delta = erase(fresh(), NEON, others(NEON), settings, seed=np.int64(3), trainer=QUIET)
    assert ConceptDelta.load(delta.save(tmp_path / "neon.safetensors")).provenance.seed == 3


def test_anchors_that_are_the_prompts_are_refused() -> None:
    with refused("anchors of 'x' are its own prompts"):
        erase(fresh(), Concept("x", ("neon",), anchors=("NEON ",)), others(NEON), EXACT)


def test_words_that_mean_something_else_have_images_of_their_own() -> None:
    """Two textual inversions of one word, one process."""
    deltas = []
    for again in (False, True):
        for value in (1.0, -1.0):
            if again:
                _DRAWN.clear()
            pipe = make_tiny_pipeline()
            pipe.tokenizer.add_tokens("<x>")
            pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
            table = pipe.text_encoder.get_input_embeddings().weight.data
            table[-1] = value * table[5]
            backbone = Backbone(pipe, "inverted", guidance=4.0, steps=3)
            word = Concept("<x>", ("<x>",))
            deltas.append(erase(backbone, word, others(NEON), QUICK, trainer=QUIET).digest)
    assert deltas[:2] == deltas[2:]
    assert deltas[0] != deltas[1]


@pytest.mark.parametrize("written", [0.0, 1.5, -1.0])
def test_a_hot_swap_over_our_adapter_is_seen_and_mended(written: float) -> None:
    backbone, composition = neon_erased()
    erased, delta = latents(backbone), three_deltas()[0]
    for adapter in [*backbone.unet.peft_config]:  # one of them is neon's
        other = (delta * written).lora_state_dict()
        options = {"prefix": "unet", "adapter_name": adapter, "hotswap": True}
        backbone.unet.load_lora_adapter(other, **options)
    for told in (lambda: latents(backbone), lambda: composition.active):
        with refused("written over those that erase"):
            told()
    composition.set(["neon"])
    assert composition.active == ("neon",)
    assert torch.equal(latents(backbone), erased)
    composition.restore_all()
    assert torch.equal(latents(backbone), latents(fresh()))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_pipeline_that_is_cast_meanwhile_keeps_what_is_erased(half: torch.dtype) -> None:
    backbone, composition = neon_erased()
    for dtype in (half, torch.float32):
        backbone.pipe.to(dtype)
        assert composition.active == ("neon",)


@pytest.mark.parametrize("letters", [str.upper, " {} ".format])
def test_what_is_kept_is_decided_on_tokens(letters: Callable[[str], str]) -> None:
    neon, ink = three_deltas()[:2]
    kept = tuple(letters(prompt) if prompt else "" for prompt in ink.kept)
    typed = replace(ink, provenance=replace(ink.provenance, kept=kept))
    with Composition(fresh(), [neon, typed]) as composition:
        composition.erase("neon", "ink")
        assert composition.active == ("ink", "neon")
    less = replace(ink.provenance, kept=("",))
    with (
        Composition(fresh(), [neon, replace(ink, provenance=less)]) as composition,
        refused("'ink' was erased without keeping 'neon'"),
    ):
        composition.erase("neon", "ink")


# ---------------------------------------------------------------- half-done, exchanged, suspended
def test_an_exchanged_unet_is_not_drawn_with_as_if_the_concept_were_erased() -> None:
    backbone, composition = neon_erased()
    mine, other = backbone.pipe, fresh().pipe
    kept = backbone.pipe.unet
    backbone.pipe.unet = other.unet
    for look in (lambda: latents(backbone), lambda: composition.active):
        with refused("were changed since"):
            look()
    backbone.pipe.unet = kept
    backbone.pipe = other
    with refused("were changed since"):
        latents(backbone)
    backbone.pipe = mine
    composition.restore_all()
    backbone.pipe.unet = other.unet  # nothing of the deltas would be missed
    latents(backbone)


@pytest.mark.parametrize("at", [1, 3, 9])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_is_interrupted_while_it_is_attached_leaves_the_model_as_it_was(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException], at: int
) -> None:
    backbone = fresh()
    before, real, calls = latents(backbone), LoraModel._create_and_replace, []

    def stopped(*args: object, **options: object) -> None:
        calls.append(1)
        if len(calls) == at:
            raise error
        real(*args, **options)

    monkeypatch.setattr(LoraModel, "_create_and_replace", stopped)
    with pytest.raises(error):
        Composition(backbone, three_deltas())
    monkeypatch.undo()
    assert torch.equal(latents(backbone), before)
    with Composition(backbone, three_deltas()) as composition:
        composition.erase("neon")
        assert not torch.equal(latents(backbone), before)
    assert torch.equal(latents(backbone), before)


def dense_neon() -> DenseDelta:
    delta = three_deltas()[0]
    changes = {f"{path}.weight": delta.dense(path) for path in delta.paths}
    return DenseDelta(changes, delta.provenance)


def test_no_memory_for_a_dense_delta_leaves_the_model_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = fresh()
    before, real, calls = latents(backbone), torch.Tensor.float, []

    def full(tensor: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError
        return real(tensor)

    monkeypatch.setattr(torch.Tensor, "float", full)
    with pytest.raises(torch.OutOfMemoryError), applied(backbone, dense_neon()):
        pass
    monkeypatch.undo()
    assert backbone.composition is None
    assert torch.equal(latents(backbone), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("settings", [QUICK, FROM_ZERO], ids=["closed form", "from zero"])
def test_torch_s_default_type_changes_no_delta(
    settings: ErasureSettings, dtype: torch.dtype, tmp_path: Path
) -> None:
    wanted = erase(fresh(), NEON, others(NEON), settings, trainer=QUIET)
    backbone = fresh()
    torch.set_default_dtype(dtype)
    try:
        made = erase(backbone, NEON, others(NEON), settings, trainer=QUIET)
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)
    assert made.digest == wanted.digest
    ConceptDelta.load(made.save(tmp_path / "neon.safetensors"))


def test_a_unet_that_computes_its_activations_again_can_be_trained_on() -> None:
    wanted = erase(fresh(), NEON, others(NEON), QUICK, trainer=QUIET)
    backbone = fresh()
    backbone.unet.enable_gradient_checkpointing()
    assert erase(backbone, NEON, others(NEON), QUICK, trainer=QUIET).digest == wanted.digest
    assert backbone.unet.is_gradient_checkpointing
    BASELINES["esd-x"].erase(backbone, NEON, replace(ESD, iterations=1), trainer=QUIET)


def test_a_model_that_was_loaded_for_inference_alone_can_be_trained_on(tmp_path: Path) -> None:
    fresh().pipe.save_pretrained(tmp_path)
    with torch.inference_mode():
        backbone = Backbone.load(tmp_path, device="cpu")
    erase(backbone, NEON, others(NEON), QUICK, trainer=QUIET)


def test_what_can_be_read_only_once_counts_for_every_concept() -> None:
    backbone, both = fresh(), [NEON, Concept("ink", ("ink",))]
    once = erase(backbone, both, (text for text in ["a cat"]), EXACT)
    assert [d.kept for d in once] == [d.kept for d in erase(backbone, both, ["a cat"], EXACT)]
    (neon,) = once[:1]
    later = erase(backbone, both[1], ["a cat"], EXACT, after=(d for d in [neon]))
    assert later.provenance.after == (neon.digest,)
    styles, objects = ["neon", "ink"], ["boat"]
    assert catalogue_of(iter(styles), iter(objects)) == catalogue_of(styles, objects)
    planned = plan(iter(both), iter(["a cat"]), None, QUICK)
    assert planned == plan(both, ["a cat"], None, QUICK)


def test_two_threads_may_load_at_once(tmp_path: Path) -> None:
    fresh().pipe.save_pretrained(tmp_path)
    with ThreadPoolExecutor(2) as threads:
        one, two = threads.map(lambda _: Backbone.load(tmp_path, device="cpu"), range(2))
    assert one.fingerprint == two.fingerprint


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_baseline_trains_in_whatever_mode_and_alone(mode: type) -> None:
    backbone, drawn = fresh(), []
    before = latents(backbone)
    waiting = threading.Thread(target=lambda: drawn.append(latents(backbone)))
    watch = Trainer(callback=lambda step: step.iteration == 1 and waiting.start(), progress=False)
    with mode():
        BASELINES["esd-x"].erase(backbone, NEON, replace(ESD, iterations=3), trainer=watch)
    waiting.join()
    assert torch.equal(drawn[0], before)


def test_a_callback_that_switches_deltas_does_not_change_what_is_trained() -> None:
    backbone = fresh()
    neon = erase(backbone, NEON, others(NEON), EXACT)
    composition = Composition(backbone, [neon])
    composition.erase("neon")
    ink = Concept("ink", ("ink",))
    for act in (composition.restore_all, lambda: composition.set(["neon"]), composition.close):
        with refused("not on the pipeline now"):
            erase(backbone, ink, ["a cat"], QUICK, trainer=calling(act))
        assert composition.active == ("neon",)
    with refused("close it at the end of the callback"):
        erase(
            backbone, ink, ["a cat"], QUICK, trainer=calling(lambda: Composition(backbone, [neon]))
        )
    assert backbone.composition is composition
    assert composition.active == ("neon",)


def calling(act: Callable[[], object]) -> Trainer:
    return Trainer(callback=lambda _step: act(), progress=False)


def test_deltas_for_a_block_are_not_put_over_others() -> None:
    backbone, composition = neon_erased()
    with refused("would mix with this delta"), applied(backbone, three_deltas()[1]):
        pass
    assert composition.active == ("neon",)


def test_a_closed_composition_says_so() -> None:
    _, composition = neon_erased()
    composition.close()
    composition.close()
    for act in (lambda: composition.set(["neon"]), lambda: composition.restore("neon")):
        with refused("if it was closed"):
            act()


def test_a_model_is_found_again_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh().pipe.save_pretrained(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    backbone = Backbone.load("mine", device="cpu")
    monkeypatch.chdir("/")
    assert backbone.pipe.name_or_path == str(tmp_path / "mine")
    with refused("mine"):
        export(backbone, three_deltas()[:1], tmp_path / "mine", "folder", overwrite=True)


# ---------------------------------------------------------------- twice, and over what is not ours
def test_what_forgets_the_same_is_not_switched_on_twice() -> None:
    neon, ink = three_deltas()[:2]
    loud = replace(
        neon,
        provenance=replace(
            neon.provenance,
            concept="NEON",
            forgotten=tuple(f" {prompt.upper()}" for prompt in neon.forgotten),  # the same tokens
        ),
    )
    for twin in (loud, neon + ink):
        with Composition(fresh(), [neon, twin]) as composition:
            for alone in ("neon", twin.concept):
                composition.set([alone])
            with refused("act on it twice"):
                composition.set(["neon", twin.concept])
            assert composition.active == (twin.concept,)
        with Composition(fresh(), [neon, twin], force=True) as composition:
            composition.set(["neon", twin.concept])


def test_erasing_leaves_no_gradient_in_a_users_unet() -> None:
    backbone = fresh()
    backbone.unet.requires_grad_(True)
    erase(backbone, NEON, others(NEON), QUICK, trainer=QUIET)
    assert all(weight.grad is None for weight in backbone.unet.parameters())


def test_a_pipeline_is_no_backbone() -> None:
    pipe = fresh().pipe
    with refused("StableDiffusionPipeline"):
        erase(pipe, NEON)


def test_a_trainer_takes_a_name_and_whole_numbers() -> None:
    assert Trainer(checkpoint="run.ckpt").checkpoint == Path("run.ckpt")
    with refused("every = 0"):
        Trainer(every=0)


def test_a_file_behind_a_link_is_written_and_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    file, link = tmp_path / "far" / "neon.safetensors", tmp_path / "neon.safetensors"
    three_deltas()[1].save(file)
    file.chmod(0o640)
    link.symlink_to(file)
    three_deltas()[0].save(link)
    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o640
    assert ConceptDelta.load(file).digest == three_deltas()[0].digest
    assert {*tmp_path.rglob("*")} == {file.parent, file, link}


@pytest.mark.parametrize("meanwhile", ["freeu", "vae", "lora", "strength"])
def test_the_mixer_s_before_is_of_the_model_as_it_is_now(meanwhile: str) -> None:
    backbone = fresh()
    theirs = lora(backbone.unet, "unet", ("attn1.to_q", "attn1.to_v"))
    if meanwhile == "strength":
        backbone.pipe.load_lora_weights(theirs, adapter_name="theirs")
    mixer = Mixer(backbone, None, {delta.concept: delta for delta in three_deltas()})
    state = MixerState("neon", {"neon": 1.0}, steps=2)
    first = mixer.draw(state).before
    assert torch.equal(mixer.draw(state).before, first)
    if meanwhile == "freeu":
        backbone.pipe.enable_freeu(0.9, 0.2, 1.5, 1.6)
    elif meanwhile == "vae":
        with torch.no_grad():
            backbone.pipe.vae.decoder.conv_out.bias.add_(0.3)
    elif meanwhile == "lora":
        backbone.pipe.load_lora_weights(theirs, adapter_name="theirs")
    else:
        backbone.pipe.set_adapters(["theirs"], [3.0])
    later = mixer.draw(state).before
    assert not torch.equal(later, first)
    assert torch.equal(later, backbone.generate(["neon"], [0], steps=2))
