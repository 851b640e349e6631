"""What sepme exports, other programs read; what they export, sepme reads."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sepme import exchange
from sepme.composition import Composition, applied
from sepme.concept import Concept
from sepme.delta import ConceptDelta, DenseDelta
from sepme.exchange import FORMATS, export, import_lora, truncated
from sepme.model import Backbone
from sepme.shapes import CLIP_MERGES, random_pipeline
from tests.borders.test_loading import small
from tests.miniature import KEPT, NEON, changed, fresh, latents, shared, three_deltas
from tests.refusals import refused
from tests.strangers import PROMPTS, starting_noise, strangers_latents

#: sd-scripts' names of what a UNet of 1.x reads text with, written down by hand.
BLOCKS = """
down_blocks_0_attentions_0 down_blocks_0_attentions_1
down_blocks_1_attentions_0 down_blocks_1_attentions_1
down_blocks_2_attentions_0 down_blocks_2_attentions_1
mid_block_attentions_0
up_blocks_1_attentions_0 up_blocks_1_attentions_1 up_blocks_1_attentions_2
up_blocks_2_attentions_0 up_blocks_2_attentions_1 up_blocks_2_attentions_2
up_blocks_3_attentions_0 up_blocks_3_attentions_1 up_blocks_3_attentions_2
""".split()
KOHYA = {
    f"lora_unet_{block}_transformer_blocks_0_attn2_{matrix}"
    for block in BLOCKS
    for matrix in ("to_k", "to_v")
}
#: Written by somebody who has diffusers, peft and the files, and nothing else.
STRANGER = """
for name, file in request["asked"].items():
    whole = f"{folder}/{name}" if file is None else f"{folder}/model"
    if name == "file":  # whose config diffusers would take from the hub
        pipe = StableDiffusionPipeline.from_single_file(
            f"{folder}/{name}/{file}", config=whole, local_files_only=True, safety_checker=None
        )
    else:
        pipe = StableDiffusionPipeline.from_pretrained(whole, safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    if file and name != "file":
        pipe.load_lora_weights(f"{folder}/{name}", weight_name=file)
"""
F32 = {"dtype": torch.float32}


def changes(delta: ConceptDelta) -> dict[str, Tensor]:
    return {path: delta.dense(path).double() for path in delta.paths}


def furthest(delta: ConceptDelta, other: ConceptDelta) -> float:
    """The largest difference of a layer, in the Frobenius norm, relative to the layer."""
    one, two = changes(delta), changes(other)
    assert one.keys() == two.keys()
    return max(float((one[p] - two[p]).norm() / one[p].norm()) for p in one)


@pytest.fixture(scope="module")
def sd() -> Backbone:
    """A miniature of Stable Diffusion 1.4."""
    if CLIP_MERGES.path() is None:
        pytest.skip("open-clip-torch is not installed (make does it)")
    return Backbone(random_pipeline("sd14", miniature=True), "sd14", guidance=4.0, steps=3)


def random_deltas(model: Backbone) -> list[ConceptDelta]:
    """Random factors of rank 3 that move what is drawn, in all layers, for neon and for ink."""
    generator, made = torch.Generator().manual_seed(3), []
    for like in three_deltas()[:2]:
        down, up = {}, {}
        for path, layer in model.projections().items():
            down[path] = torch.randn(3, layer.in_features, generator=generator) / 30
            up[path] = torch.randn(layer.out_features, 3, generator=generator) / 3
        provenance = replace(like.provenance, base=model.fingerprint, base_name=model.name)
        made.append(ConceptDelta(down, up, provenance))
    return made


@pytest.fixture(scope="module")
def random_delta(sd: Backbone) -> ConceptDelta:
    return random_deltas(sd)[0]


# ---------------------------------------------------------------------- others read it
def check_with_stock_diffusers(
    folder: Path, backbone: Backbone, formats: Sequence[str], deltas: Sequence[ConceptDelta]
) -> None:
    """All exports of the two deltas, the second by half, draw what a composition draws."""
    neon, ink = (delta.concept for delta in deltas)
    backbone.pipe.save_pretrained(folder / "model")
    save_file({"noise": starting_noise(backbone)}, folder / "noise.safetensors")
    asked = {"model": None}
    for format in formats:
        options = {"strengths": {ink: 0.5}, "dtype": torch.float32}
        made = export(backbone, deltas, folder / format, format, **options)
        assert made.error < 1e-6
        asked[format] = None if format == "folder" else made.weights.name
    drawn = strangers_latents(folder, STRANGER, asked)
    original = backbone.generate(PROMPTS, seeds=0, output="latents")
    with Composition(backbone, deltas) as composition:
        composition.set({neon: 1.0, ink: 0.5})
        erased = backbone.generate(PROMPTS, seeds=0, output="latents")
    assert changed(original, drawn.pop("model")) <= 1e-5
    assert changed(original, erased) > 1e-2
    for name, found in drawn.items():
        assert changed(erased, found) <= 1e-5, name


def test_stock_diffusers_draws_the_same_from_every_export(tmp_path: Path) -> None:
    deltas = three_deltas("v_prediction")[:2]
    backbone = fresh("v_prediction")
    check_with_stock_diffusers(tmp_path, backbone, ("peft", "kohya", "folder"), deltas)


def test_and_from_those_of_stable_diffusions_layers(
    tmp_path: Path, sd: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    check_with_stock_diffusers(tmp_path, sd, list(FORMATS), random_deltas(sd))


def test_kohya_names_of_1x_are_those_of_the_list(
    sd: Backbone, random_delta: ConceptDelta, tmp_path: Path
) -> None:
    made = export(sd, [random_delta], tmp_path / "out", "kohya")
    tensors = load_file(made.weights)
    assert len(KOHYA) == 32
    parts = ("lora_down.weight", "lora_up.weight", "alpha")
    assert set(tensors) == {f"{name}.{part}" for name in KOHYA for part in parts}
    for name in KOHYA:
        assert tensors[f"{name}.lora_down.weight"].dtype == torch.float16
        assert float(tensors[f"{name}.alpha"]) == len(tensors[f"{name}.lora_down.weight"]) == 3
    assert 1e-6 < made.error < 1e-3  # float16 rounds


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("down_blocks.1.attentions.0", "input_blocks_4_1"),
        ("down_blocks.2.attentions.1", "input_blocks_8_1"),
        ("mid_block.attentions.0", "middle_block_1"),
        ("up_blocks.0.attentions.2", "output_blocks_2_1"),
        ("up_blocks.1.attentions.0", "output_blocks_3_1"),
    ],
)
def test_kohya_names_of_xl_are_the_original_ones(path: str, name: str) -> None:
    layer = "transformer_blocks.9.attn2.to_k"
    found = exchange.kohya_name(f"{path}.{layer}", xl=True)
    assert found == f"lora_unet_{name}_transformer_blocks_9_attn2_to_k"


def test_diffusers_reads_the_kohya_names_of_xl(tmp_path: Path) -> None:
    if CLIP_MERGES.path() is None:
        pytest.skip("open-clip-torch is not installed (make does it)")
    xl = Backbone(random_pipeline("sdxl", miniature=True), "sdxl")
    delta = random_deltas(xl)[0]
    made = export(xl, [delta], tmp_path / "out", "kohya", dtype=torch.float32)
    assert len(delta.paths) == 140  # 70 transformer blocks
    assert "pooled" in (made.folder / "README.md").read_text()
    assert furthest(delta, import_lora(xl, made.weights, NEON)) < 1e-5
    xl.pipe.load_lora_weights(made.folder, weight_name=made.weights.name, adapter_name="erased")
    for path in delta.paths:
        found = xl.unet.get_submodule(path).get_delta_weight("erased").detach()
        assert float((found - delta.dense(path)).abs().max()) <= 1e-6


def test_a_merged_file_of_the_original_layout_is_the_erased_model(
    sd: Backbone, random_delta: ConceptDelta, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refused("layout of one file", "intermediate_size"):
        export(sd, [random_delta], tmp_path / "out", "file")
    assert list(tmp_path.iterdir()) == []
    small(monkeypatch)
    made = export(sd, [random_delta], tmp_path / "out", "file")
    loaded = Backbone.load(made.weights, device="cpu")
    for path, layer in sd.projections().items():
        expected = layer.weight.double() + random_delta.dense(path).double()
        found = loaded.projections()[path].weight.double()
        assert float((found - expected).abs().max()) <= 1e-6


def test_exporting_leaves_the_model_as_it_was_and_no_place_of_this_machine(tmp_path: Path) -> None:
    backbone = fresh()
    before = latents(backbone)
    backbone.pipe.save_pretrained(tmp_path / "model")
    loaded = Backbone.load(tmp_path / "model", device="cpu")
    made = export(loaded, three_deltas()[:1], tmp_path / "out", "folder", dtype=torch.float16)
    assert made.weights == tmp_path / "out"
    files = [file for file in made.folder.rglob("*") if file.is_file()]
    assert len({file.stat().st_mode for file in files}) == 1  # who reads one reads all
    for file in made.folder.rglob("*.json"):
        assert str(tmp_path) not in file.read_text()
    assert {
        t.dtype for t in load_file(made.folder / "vae/diffusion_pytorch_model.safetensors").values()
    } == {torch.float16}
    assert torch.equal(latents(Backbone(loaded.pipe, "tiny", 4.0, 3)), before)
    again = Backbone.load(made.folder, device="cpu")
    assert (again.guidance, again.steps) == (loaded.guidance, loaded.steps)


# ---------------------------------------------------------------------- sums and ranks
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_the_error_of_a_rank_is_the_discarded_singular_values(tmp_path: Path, rank: int) -> None:
    neon, ink, _ = three_deltas()
    made = export(shared(), [neon, ink], tmp_path / "out", rank=rank)
    values = [torch.linalg.svdvals(c) for c in changes(neon + ink).values()]
    lost, all_ = (sum(float(s[k:].square().sum()) for s in values) for k in (rank, 0))
    assert made.error == pytest.approx((lost / all_) ** 0.5, rel=1e-4, abs=1e-6)
    loaded = ConceptDelta.load(made.weights, shared().fingerprint)
    assert loaded.rank == rank
    assert f"{made.error:.2g}, rank {rank} at most" in (made.folder / "README.md").read_text()


def test_no_other_delta_of_that_rank_is_nearer() -> None:
    delta, generator = three_deltas()[0], torch.Generator().manual_seed(0)
    best = truncated(delta, 2)
    for path, change in changes(delta).items():
        error = (change - best.dense(path)).norm()
        for size in (1e-3, 1e-1):
            up, down = best.up[path], best.down[path]
            up = up + size * torch.randn(up.shape, generator=generator) * up.abs().mean()
            assert (change - up.double() @ down.double()).norm() > error
    whole = truncated(delta, 10**6)
    assert furthest(delta, whole) < 1e-5
    assert whole.rank == delta.rank


def test_a_sum_is_the_sum_and_a_strength_scales_it(tmp_path: Path) -> None:
    neon, ink, _ = three_deltas()
    made = export(shared(), [neon, ink], tmp_path / "out", strengths={"neon": 0.25})
    loaded = ConceptDelta.load(made.weights)
    for path, change in changes(loaded).items():
        expected = 0.25 * neon.dense(path) + ink.dense(path)
        assert float((change - expected).abs().max()) <= 1e-6
    assert set(loaded.forgotten) == {"neon", "ink"}


# ---------------------------------------------------------------------- the card
def test_the_card_says_what_it_is_and_no_word_acts(tmp_path: Path) -> None:
    neon = three_deltas()[0]
    hostile = "x](http://a.b) <script> | **y** ```"
    provenance = replace(
        neon.provenance, concept=hostile, forgotten=(hostile,), settings={"note": hostile}
    )
    delta = ConceptDelta(neon.down, neon.up, provenance)
    backbone = Backbone(shared().pipe, "owner/model", 4.0, 3)
    made = export(backbone, [delta], tmp_path / "out", "kohya")
    card = (made.folder / "README.md").read_text()
    head, body = card.split("---\n")[1:]
    assert 'base_model: "owner/model"' in head
    assert 'tags: ["stable-diffusion", "concept-erasure", "lora"]' in head
    for said in (backbone.fingerprint, made.weights.name, "`neon`", "the empty prompt", "Limits"):
        assert said in body.replace("`ink`", "`neon`"), said
    assert "<script>" not in body.replace(f"```` {hostile} ````", "").split("## Settings")[0]
    assert body.count("```json") == 1
    assert json.loads(body.split("```json\n")[1].split("\n```")[0]) == {"note": hostile}
    assert (
        "base_model"
        not in (export(shared(), [neon], tmp_path / "b").folder / "README.md")
        .read_text()
        .split("---\n")[1]
    )


def test_the_card_of_a_sum_lists_no_prompt_twice(tmp_path: Path) -> None:
    neon, ink, _ = three_deltas()
    card = (export(shared(), [neon, ink], tmp_path / "out").folder / "README.md").read_text()
    assert card.count("a cat") == 1
    terms = json.loads(card.split("```json\n")[1].split("\n```")[0])["sum"]
    assert [term["concept"] for term in terms] == ["neon", "ink"]
    assert all(term["settings"]["keep_rtol"] is None for term in terms)


# ---------------------------------------------------------------------- whole or not at all
def test_nothing_is_overwritten_unasked_and_nothing_half_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    neon, out = three_deltas()[0], tmp_path / "out"
    first = export(shared(), [neon], out)
    before = first.weights.read_bytes()
    with refused("is there already"):
        export(shared(), [2 * neon], out)
    (out / "mine.txt").write_text("a stranger's")
    with refused("mine.txt"):
        export(shared(), [2 * neon], out, overwrite=True)
    assert first.weights.read_bytes() == before
    (out / "mine.txt").unlink()
    export(shared(), [2 * neon], out, overwrite=True)
    assert first.weights.read_bytes() != before
    monkeypatch.setattr(exchange, "_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(shared(), [neon], tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    neon, ink, _ = three_deltas()
    out, backbone = tmp_path / "out", shared()
    alone = replace(neon.provenance, kept=("",))
    cases: list[tuple[tuple[str, ...], Callable[[], object]]] = [
        (("format = 'onnx'",), lambda: export(backbone, [neon], out, "onnx")),
        (("needs ConceptDeltas",), lambda: export(backbone, [], out)),
        (("Two deltas",), lambda: export(backbone, [neon, neon], out)),
        (("no delta of 'oil'",), lambda: export(backbone, [neon], out, strengths={"oil": 1})),
        (("strength of 'neon'",), lambda: export(backbone, neon, out, strengths={"neon": 1e999})),
        (("rank = 0",), lambda: export(backbone, [neon], out, rank=0)),
        (("no fractions",), lambda: export(backbone, [neon], out, dtype=torch.int8)),
        (("another base model",), lambda: export(fresh(seed=1), [neon], out)),
        (("interfere",), lambda: export(backbone, [replace(neon, provenance=alone), ink], out)),
        (("layout of one file",), lambda: export(backbone, [neon], out, "file")),
    ]
    for words, case in cases:
        with refused(*words):
            case()
    assert list(tmp_path.iterdir()) == []
    backbone.pipe.save_pretrained(tmp_path / "model")
    loaded = Backbone.load(tmp_path / "model", device="cpu")
    with refused("would overwrite"):
        export(loaded, [neon], tmp_path / "model", "folder", overwrite=True)
    with Composition(loaded, [neon]) as on, on.erased("neon"), refused("carries"):
        export(loaded, [neon], out, "folder")


# ---------------------------------------------------------------------- we read theirs
@pytest.mark.parametrize("format", ["peft", "kohya"])
def test_what_is_exported_comes_back(tmp_path: Path, format: str) -> None:
    neon, ink, _ = three_deltas()
    made = export(shared(), [neon, ink], tmp_path / "out", format, **F32)
    both = import_lora(shared(), made.weights, Concept("both", ("neon", "ink")), KEPT)
    assert furthest(neon + ink, both) < 1e-5
    assert both.basis is not None
    assert both.rank <= (neon + ink).rank
    assert torch.allclose(both.basis @ both.basis.mT, torch.eye(both.rank), atol=1e-5)
    assert (both.forgotten, both.kept) == (("neon", "ink"), KEPT)
    assert both.provenance.settings["imported"] == made.weights.name
    assert len(both.provenance.settings["sha256"]) == 64
    loaded = ConceptDelta.load(both.save(tmp_path / "both.safetensors"), shared().fingerprint)
    assert loaded.digest == both.digest


PATH = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
KOHYA_PATH = f"lora_unet_{PATH.replace('.', '_')}"


@pytest.mark.parametrize(
    ("down", "up", "alpha"),
    [
        (f"{KOHYA_PATH}.lora_down.weight", f"{KOHYA_PATH}.lora_up.weight", f"{KOHYA_PATH}.alpha"),
        (f"unet.{PATH}.lora_A.weight", f"unet.{PATH}.lora_B.weight", f"unet.{PATH}.alpha"),
        (f"unet.{PATH}.lora.down.weight", f"unet.{PATH}.lora.up.weight", f"unet.{PATH}.alpha"),
        (
            f"unet.{PATH}.lora_linear_layer.down.weight",
            f"unet.{PATH}.lora_linear_layer.up.weight",
            f"unet.{PATH}.alpha",
        ),
        (
            f"unet.{PATH.replace('.to_k', '.processor.to_k_lora')}.down.weight",
            f"unet.{PATH.replace('.to_k', '.processor.to_k_lora')}.up.weight",
            f"unet.{PATH.replace('.to_k', '.processor.to_k')}.alpha",
        ),
    ],
)
@pytest.mark.parametrize("scale", [None, 1.0])
def test_the_names_of_others_are_known_and_alpha_scales(
    tmp_path: Path, down: str, up: str, alpha: str, scale: float | None
) -> None:
    a, b = factors()
    tensors = {down: a, up: b} | ({} if scale is None else {alpha: torch.tensor(scale)})
    save_file(tensors, tmp_path / "lora.safetensors")
    delta = import_lora(shared(), tmp_path / "lora.safetensors", NEON)
    assert delta.paths == (PATH,)
    expected = (1.0 if scale is None else scale / 4) * (b @ a)
    assert float((delta.dense(PATH) - expected).abs().max()) < 1e-4


def factors(path: str = PATH, rank: int = 4) -> tuple[Tensor, Tensor]:
    weight = shared().unet.get_submodule(path).weight
    return torch.randn(rank, weight.shape[1]), torch.randn(len(weight), rank)


def test_the_alpha_in_diffusers_own_header_scales(tmp_path: Path) -> None:
    a, b = factors()
    tensors = {f"unet.{PATH}.lora_A.weight": a, f"unet.{PATH}.lora_B.weight": b}
    header = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 8, "unet.r": 4})}
    save_file(tensors, tmp_path / "lora.safetensors", header)
    delta = import_lora(shared(), tmp_path / "lora.safetensors", NEON)
    assert float((delta.dense(PATH) - 2 * b @ a).abs().max()) < 1e-4
    header = {"lora_adapter_metadata": json.dumps({"unet.use_dora": True})}
    save_file(tensors, tmp_path / "lora.safetensors", header)
    with refused("use_dora"):
        import_lora(shared(), tmp_path / "lora.safetensors", NEON)


def test_what_peft_saves_is_scaled_by_the_config_beside_it(tmp_path: Path) -> None:
    a, b = factors()
    names = (f"base_model.model.{PATH}.lora_{part}.weight" for part in "AB")
    save_file(dict(zip(names, (a, b), strict=True)), tmp_path / "adapter_model.safetensors")
    file, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    with refused("adapter_config.json"):  # its alpha is not known, and rank is no guess
        import_lora(shared(), file, NEON)
    config.write_text(json.dumps({"lora_alpha": 8, "r": 4, "use_dora": False}))
    delta = import_lora(shared(), file, NEON)
    assert float((delta.dense(PATH) - 2 * b @ a).abs().max()) < 1e-4
    config.write_text(json.dumps({"lora_alpha": 8, "use_rslora": True}))
    with refused("use_rslora"):
        import_lora(shared(), file, NEON)
    config.write_text("{}")
    with refused("not a whole LoRA file"):
        import_lora(shared(), file, NEON)


def test_a_kohya_file_says_which_model_it_is_of_and_is_always_the_same_bytes(
    tmp_path: Path,
) -> None:
    neon, contents = three_deltas()[0], set()
    for n in range(5):
        made = export(shared(), [neon], tmp_path / str(n), "kohya")
        contents.add(made.weights.read_bytes())
    assert len(contents) == 1
    with safe_open(made.weights, framework="pt") as file:
        said = file.metadata()
    assert (said["ss_base_model_version"], said["ss_v2"]) == ("sd_v1", "False")


def test_a_delta_too_large_for_float16_says_what_to_do(tmp_path: Path) -> None:
    neon = three_deltas()[0]
    with refused("too large for torch.float16", "bfloat16"):
        export(shared(), [neon * 1e7], tmp_path / "out", "kohya")
    assert list(tmp_path.iterdir()) == []
    export(shared(), [neon * 1e7], tmp_path / "out", "kohya", dtype=torch.bfloat16)


def test_the_scale_is_the_one_that_diffusers_uses(tmp_path: Path) -> None:
    """alpha of 1 at rank 4, loaded by diffusers, draws what our import of the same file draws."""
    tensors = {}
    for path in shared().projections():
        name = f"lora_unet_{path.replace('.', '_')}"
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = factors(path)
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "lora.safetensors")
    delta = import_lora(shared(), tmp_path / "lora.safetensors", NEON)
    with applied(shared(), delta):
        ours = latents(shared())
    theirs = fresh()
    theirs.pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    found = latents(theirs)
    assert float((found - ours).abs().max()) <= 1e-4 * float(ours.abs().max())
    assert float((latents(shared()) - ours).abs().max()) > 0.1


def test_extra_layers_are_refused_left_or_dense(tmp_path: Path) -> None:
    other, conv = PATH.replace("attn2.to_k", "attn1.to_q"), "conv_in"
    tensors = {}
    for path in (PATH, other):
        a, b = factors(path)
        tensors |= {f"unet.{path}.lora_A.weight": a, f"unet.{path}.lora_B.weight": b}
    kernel = torch.randn(2, 4, 3, 3), torch.randn(16, 2, 1, 1)
    tensors |= {f"unet.{conv}.lora_A.weight": kernel[0], f"unet.{conv}.lora_B.weight": kernel[1]}
    file = tmp_path / "lora.safetensors"
    save_file(tensors, file)
    with refused("changes 2 layers", "conv_in", "(--leave, extra='leave')"):
        import_lora(shared(), file, NEON)
    with pytest.warns(UserWarning, match="2 layers are left out"):
        left = import_lora(shared(), file, NEON, extra="leave")
    assert left.paths == (PATH,)
    assert left.provenance.settings["left_out"] == [conv, other]
    dense = import_lora(shared(), file, NEON, extra="dense")
    assert isinstance(dense, DenseDelta)
    assert set(dense.paths) == {f"{path}.weight" for path in (PATH, other, conv)}
    x = torch.randn(1, 4, 8, 8)  # the two convolutions one after the other are the change
    both = nn.functional.conv2d(nn.functional.conv2d(x, kernel[0], padding=1), kernel[1])
    one = nn.functional.conv2d(x, dense.changes[f"{conv}.weight"], padding=1)
    assert torch.allclose(both, one, atol=1e-4)
    dense.check_model(shared())
    text = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    more = {f"{text}.lora_down.weight": a.clone(), f"{text}.lora_up.weight": b.clone()}
    save_file(tensors | more, file)
    with refused(text):
        import_lora(shared(), file, NEON, extra="dense")


@pytest.mark.parametrize(
    ("keep", "said"),
    [("neon", "also to be kept"), (["boat", " NEON"], "to be kept"), (["neon " * 9], "falls off")],
)
def test_what_a_file_is_said_to_keep_is_looked_at(
    tmp_path: Path, keep: str | list[str], said: str
) -> None:
    file = export(shared(), three_deltas()[:1], tmp_path / "out").weights
    with refused(said):
        import_lora(shared(), file, NEON, keep)
    assert import_lora(shared(), file, NEON, "boat").kept == ("boat",)


@pytest.mark.parametrize("link", [True, False])
def test_an_export_through_a_link_replaces_what_the_link_names(tmp_path: Path, link: bool) -> None:
    neon, out = three_deltas()[0], tmp_path / "real"
    export(shared(), [neon], out)
    if link:
        out = tmp_path / "link"
        out.symlink_to("real")
    made = export(shared(), [2 * neon], out, overwrite=True)
    assert made.folder == out
    assert out.is_symlink() == link
    assert furthest(2 * neon, ConceptDelta.load(tmp_path / "real" / made.weights.name)) < 1e-6
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"real", *(["link"] if link else [])}


def test_hostile_files_are_one_sentence(tmp_path: Path) -> None:
    a, b = factors()
    down, up = f"unet.{PATH}.lora_A.weight", f"unet.{PATH}.lora_B.weight"
    file = tmp_path / "lora.safetensors"
    hostile = {
        "holds 'unet.hello'": {down: a, up: b, "unet.hello": a},
        "LoHa": {f"lora_unet_{PATH}.hada_w1_a": a, f"lora_unet_{PATH}.hada_w1_b": b},
        "not so DoRA": {down: a, up: b, f"lora_unet_{PATH}.dora_scale": a},
        "LoCon": {down: a, up: b, f"lora_unet_{PATH}.lora_mid.weight": a},
        "do not fit": {down: a[:, :5], up: b},
        "factors of": {down: a},
        "this model's": {down: a[:0], up: b[:, :0]},
        "is no number": {down: a, up: b, f"unet.{PATH}.alpha": torch.ones(2)},
        "not finite": {down: a, up: b * torch.nan},
        "is not finite": {down: a, up: b, f"unet.{PATH}.alpha": torch.tensor(torch.inf)},
        "are zero": {down: 0 * a, up: b},
        "All factors": {down: a, up: 0 * b},
        "or their scale": {down: a, up: b, f"unet.{PATH}.alpha": torch.tensor(0.0)},
        "changes no": {},
        "as whole numbers": {down: a.to(torch.int8), up: b},
        "a second time": {down: a, up: b, down.replace("lora_A", "lora.down"): a},
        "only a plain LoRA": {"\x1b[31m.lora": a},
    }
    for words, tensors in hostile.items():
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)
        with refused(words):
            import_lora(shared(), file, NEON)
    for said in ("[]", '{"unet.lora_alpha": "x"}', "[" * 100_000, '{"unet.lora_alpha": [1]}'):
        save_file({down: a, up: b}, file, {"lora_adapter_metadata": said})
        with refused("not a whole LoRA file"):
            import_lora(shared(), file, NEON)
    file.write_bytes(file.read_bytes()[:-10])
    with refused("not a whole safetensors file"):
        import_lora(shared(), file, NEON)
    torch.save({down: a}, tmp_path / "lora.pt")
    with refused("may run code"):
        import_lora(shared(), tmp_path / "lora.pt", NEON)
    os.replace(tmp_path / "lora.pt", file)  # a pickle by another name
    with refused("not a whole safetensors file"):
        import_lora(shared(), file, NEON)
    with refused("No such file"):
        import_lora(shared(), tmp_path / "none.safetensors", NEON)
    with refused("extra = 'all'"):
        import_lora(shared(), file, NEON, extra="all")
