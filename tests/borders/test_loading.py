"""Models that people bring: folders of either number type, single files, pipelines, and others."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from sepme import loading
from sepme.artefact import same_model
from sepme.atelier.judge import Judge
from sepme.composition import Composition
from sepme.delta import ConceptDelta, DenseDelta
from sepme.erasure import erase
from sepme.loading import Sampling, check_pipeline
from sepme.model import Backbone
from sepme.shapes import CLIP_MERGES, SHAPES, miniature_of, random_pipeline
from tests.ldm import one_file
from tests.miniature import EXACT, NEON, changed, latents, others, shared, three_deltas
from tests.refusals import refused
from tests.tiny import WIDTH, make_tiny_pipeline, text_encoder

#: What Git LFS puts in place of a file that it has not fetched.
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n"
PART = {
    "text_encoder": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "miniature"
    make_tiny_pipeline().save_pretrained(path)
    return path


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A model's folder, to be spoilt."""
    shutil.copytree(saved, tmp_path / "model")
    return tmp_path / "model"


def everything(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


# ---------------------------------------------------------------------- folders
def as_fp16(folder: Path, parts: tuple[str, ...] = tuple(PART)) -> None:
    """As a hub's variant: half precision, under names of its own."""
    for part in parts:
        file = folder / part / f"{PART[part]}.safetensors"
        halves = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(halves, file.with_name(f"{PART[part]}.fp16.safetensors"), {"format": "pt"})
        file.unlink()


@pytest.mark.parametrize("parts", [tuple(PART), ("unet",), ("text_encoder", "vae")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_variant_in_half_precision_is_the_same_model(
    folder: Path, parts: tuple[str, ...], dtype: torch.dtype
) -> None:
    as_fp16(folder, parts)
    backbone = Backbone.load(folder, device="cpu", dtype=dtype)
    assert backbone.dtype == dtype
    if dtype != torch.bfloat16:  # else the weights were rounded twice
        assert same_model(backbone.fingerprint, shared().fingerprint)
        with Composition(backbone, three_deltas()) as composition:
            composition.erase("neon")
            assert composition.active == ("neon",)


def test_of_two_files_the_one_of_the_wanted_type_is_read(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name("both"))
    as_fp16(folder.with_name("both"))
    shutil.copytree(folder, folder.with_name("both"), dirs_exist_ok=True)
    for dtype in (torch.float32, torch.float16):
        backbone = Backbone.load(folder.with_name("both"), device="cpu", dtype=dtype)
        assert same_model(backbone.fingerprint, shared().fingerprint)
    full = Backbone.load(folder.with_name("both"), device="cpu")
    assert full.fingerprint == shared().fingerprint


def without(part: str, ending: str) -> Callable[[Path], None]:
    """Removes the weights of a part whose name ends so."""

    def spoil(folder: Path) -> None:
        file = folder / part / f"{PART[part]}.safetensors"
        tensors = {n: t for n, t in load_file(file).items() if not n.endswith(ending)}
        assert len(tensors) < len(load_file(file))
        save_file(tensors, file, {"format": "pt"})

    return spoil


def listed(**entries: Any) -> Callable[[Path], None]:
    """Changes what `model_index.json` lists."""

    def spoil(folder: Path) -> None:
        file = folder / "model_index.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | entries))

    return spoil


def pickled(part: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / part / f"{PART[part]}.safetensors"
        name = "pytorch_model.bin" if part == "text_encoder" else f"{PART[part]}.bin"
        torch.save(load_file(file), file.with_name(name))
        file.unlink()

    return spoil


def config(part: str, **entries: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / part / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | entries))

    return spoil


def removed(name: str) -> Callable[[Path], None]:
    return lambda folder: (
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    )


XL = {"_class_name": "StableDiffusionXLPipeline", "text_encoder_2": ["transformers", "CLIPText"]}
SD3 = {"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "SD3Transformer"]}
SD3 |= {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}
FLUX = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights of the text encoder": (removed("text_encoder/model.safetensors"), "text_encoder"),
    "no weights of the unet": (removed("unet/diffusion_pytorch_model.safetensors"), "unet"),
    "no text encoder": (removed("text_encoder"), "no Stable Diffusion pipeline"),
    "no tokenizer": (removed("tokenizer"), "no vocabulary"),
    "no scheduler": (removed("scheduler"), "no Stable Diffusion pipeline"),
    "an embedding is missing": (without("text_encoder", "position_embedding.weight"), "lacks 1"),
    "layers are missing": (without("text_encoder", "norm.weight"), "lacks 1"),
    "a layer of the unet is missing": (without("unet", "conv_in.weight"), "'conv_in.weight'"),
    "all of the unet's text layers are missing": (without("unet", "attn2.to_k.weight"), "lacks 4"),
    "a layer of the vae is missing": (without("vae", "post_quant_conv.weight"), "lacks 1"),
    "a pickled unet": (pickled("unet"), "pickles"),
    "a pickled text encoder": (pickled("text_encoder"), "pickles"),
    "a pickled vae": (pickled("vae"), "pickles"),
    "a second text encoder of another kind": (listed(**XL), "its text_encoder_2 is CLIPText where"),
    "a refiner": (listed(**XL, text_encoder=[None, None]), "a refiner"),
    "Stable Diffusion 3": (listed(**SD3, unet=[None, None]), "joint attention blocks"),
    "FLUX": (listed(**FLUX, unet=[None, None]), "joint attention blocks"),
    "no class for the scheduler": (listed(scheduler=[None, None]), "its scheduler is missing"),
    "a scheduler of its own": (listed(scheduler=["mine", "MyScheduler"]), "its scheduler is My"),
    "a scheduler of another process": (
        listed(scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"]),
        "does not noise by betas",
    ),
    "a ControlNet": (
        listed(
            controlnet=["diffusers", "ControlNetModel"], _class_name="StableDiffusionControlNet"
        ),
        "whose controlnet takes part",
    ),
    "no class for the unet": (listed(unet=[None, None]), "its unet is missing"),
    "code of its own": (listed(unet=["my_unet", "MyUNet"]), "its unet is MyUNet"),
    "a unet of another kind": (listed(unet=["diffusers", "UNet3DConditionModel"]), "its unet"),
    "another text encoder": (listed(text_encoder=["transformers", "T5EncoderModel"]), "T5Encoder"),
    "another tokenizer": (listed(tokenizer=["transformers", "BertTokenizer"]), "its tokenizer"),
    "another width": (config("unet", cross_attention_dim=64), "no Stable Diffusion pipeline"),
    "words for numbers": (config("unet", sample_size="large"), "'large'"),
    "nested too deep": (
        lambda folder: (folder / "unet" / "config.json").write_text("[" * 100_000),
        "no Stable Diffusion pipeline",
    ),
    "an index that is a list": (
        lambda folder: (folder / "model_index.json").write_text("[1]"),
        "no Stable Diffusion pipeline",
    ),
    "an index of strings": (listed(unet="UNet2DConditionModel"), "its unet is missing"),
    "a tokenizer of numbers": (
        lambda folder: [f.write_text("3") for f in (folder / "tokenizer").iterdir()],
        "no Stable Diffusion pipeline",
    ),
    "fewer embeddings than tokens": (
        lambda folder: text_encoder(60, 96, 2, 96, 10).save_pretrained(folder / "text_encoder"),
        "embeddings",
    ),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_folder_that_is_not_a_whole_model_is_refused(folder: Path, how: str) -> None:
    spoil, said = SPOILT[how]
    spoil(folder)
    before = everything(folder.parent)
    with refused(said):
        Backbone.load(folder, device="cpu").generate(["neon"], steps=1)
    assert everything(folder.parent) == before


def test_the_same_folder_unspoilt_draws(folder: Path) -> None:
    assert Backbone.load(folder, device="cpu").generate(["neon"], steps=1).isfinite().all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", torch.float16])
def test_a_number_type_is_taken_by_its_name(folder: Path, dtype: object) -> None:
    pipe = Backbone.load(folder, device="cpu", dtype=dtype).pipe
    found = {str(getattr(pipe, part).dtype).removeprefix("torch.") for part in PART}
    assert found == {str(dtype).removeprefix("torch.")}


@pytest.mark.parametrize("dtype", ["fp16", "int8", torch.int8, torch.float8_e4m3fn, None, 16, [1]])
def test_another_number_type_is_refused(folder: Path, dtype: object) -> None:
    with refused("dtype = ", "choose one of float32, float16"):
        Backbone.load(folder, device="cpu", dtype=dtype)


# ---------------------------------------------------------------------- how it is sampled
@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        '"fast"',
        '{"guidance_scale": "4"}',
        '{"guidance_scale": null}',
        '{"guidance_scale": -1}',
        '{"guidance_scale": 0.5}',
        '{"guidance_scale": NaN}',
        '{"guidance_scale": Infinity}',
        '{"guidance_scale": 1e999}',
        '{"guidance_scale": true}',
        '{"num_inference_steps": 0}',
        '{"num_inference_steps": -3}',
        '{"num_inference_steps": 2.5}',
        '{"num_inference_steps": "25"}',
        '{"num_inference_steps": true}',
        '{"num_inference_steps": 1001}',
        '{"num_inference_steps": 1e400}',
        "[" * 100_000,
    ],
)
def test_sampling_that_cannot_be_done_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation.json").write_text(text)
    with refused("generation.json", "guidance_scale"):
        Sampling.beside(tmp_path)


@pytest.mark.parametrize(
    ("text", "guidance", "steps"),
    [
        ("{}", 7.5, 100),
        ('{"guidance_scale": 4}', 4.0, 100),
        ('{"guidance_scale": 0, "num_inference_steps": 1}', 0.0, 1),
        ('{"num_inference_steps": 1000, "scheduler": "DDIM"}', 7.5, 1000),
        ('\ufeff{"guidance_scale": 4}', 4.0, 100),
    ],
)
def test_sampling_that_can(tmp_path: Path, text: str, guidance: float, steps: int) -> None:
    (tmp_path / "generation.json").write_text(text)
    found = Sampling.beside(tmp_path)
    assert (found.guidance_scale, found.num_inference_steps) == (guidance, steps)
    assert Sampling.beside(tmp_path / "elsewhere") == Sampling()


# ---------------------------------------------------------------------- pipelines of the user's own
def test_a_pipeline_that_was_given_in_half_precision_takes_deltas_made_in_float32() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        backbone = Backbone(make_tiny_pipeline().to(dtype), "mine")
        with Composition(backbone, three_deltas()) as composition:
            composition.erase("neon")


def test_tokens_that_were_added_leave_the_model_what_it_is() -> None:
    pipe = make_tiny_pipeline()
    pipe.tokenizer.add_tokens(["<my-style>", "<my-cat>"])
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
    backbone = Backbone(pipe, "with inversions", guidance=4.0, steps=3)
    assert backbone.fingerprint == shared().fingerprint
    with Composition(backbone, three_deltas()) as composition:
        composition.erase("neon")
    assert torch.equal(latents(backbone), latents(shared()))


def changed_embedding(pipe: StableDiffusionPipeline) -> None:
    pipe.text_encoder.get_input_embeddings().weight.data[3] += 0.1


def changed_projection(pipe: StableDiffusionPipeline) -> None:
    pipe.unet.mid_block.attentions[0].proj_out.weight.data.mul_(1.01)


@pytest.mark.parametrize("change", [changed_embedding, changed_projection])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_weights_are_another_model_in_every_type(
    change: Callable[[StableDiffusionPipeline], None], dtype: torch.dtype
) -> None:
    pipe = make_tiny_pipeline()
    change(pipe)
    assert not same_model(Backbone(pipe.to(dtype), "mine").fingerprint, shared().fingerprint)


def meta(part: str) -> Callable[[StableDiffusionPipeline], None]:
    return lambda pipe: getattr(pipe, part).to("meta")


def wrapped(part: str, wrapper: Callable) -> Callable[[StableDiffusionPipeline], None]:
    return lambda pipe: setattr(pipe, part, wrapper(getattr(pipe, part)))


def with_lora(module: nn.Module) -> nn.Module:
    return get_peft_model(module, LoraConfig(r=2, target_modules=["to_q", "q_proj"]))


def quantised(module: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(module, {nn.Linear})


def middle_compiled(pipe: StableDiffusionPipeline) -> None:
    pipe.unet.mid_block = torch.compile(pipe.unet.mid_block)  # nothing is compiled until a call


def with_ip_adapter(pipe: StableDiffusionPipeline) -> None:
    """Of an embedding of a picture of 16 numbers, as two tokens."""
    layers, of = dict(pipe.unet.named_modules()), {}
    names = [name for name in pipe.unet.attn_processors if "attn2" in name]
    for k, name in enumerate(names):
        keys = layers[name.removesuffix(".processor")].to_k.weight
        of |= {f"{2 * k + 1}.to_{what}_ip.weight": torch.zeros_like(keys) for what in "kv"}
    image = {"proj.weight": torch.zeros(4 * WIDTH, 16), "proj.bias": torch.zeros(4 * WIDTH)}
    image |= {"norm.weight": torch.ones(WIDTH), "norm.bias": torch.zeros(WIDTH)}
    pipe.unet._load_ip_adapter_weights([{"image_proj": image, "ip_adapter": of}])


def with_keys_of_its_own(pipe: StableDiffusionPipeline) -> None:
    def processor(name: str) -> CustomDiffusionAttnProcessor:
        text = {"cross_attention_dim": WIDTH, "hidden_size": 32} if "attn2" in name else {}
        return CustomDiffusionAttnProcessor(train_kv=bool(text), train_q_out=False, **text)

    pipe.unet.set_attn_processor({name: processor(name) for name in pipe.unet.attn_processors})


#: What a pipeline is refused for when it is wrapped, and when it is erased from later.
OTHERWISE: dict[str, tuple[Callable[[StableDiffusionPipeline], object], str]] = {
    "a parallel part": (wrapped("unet", nn.DataParallel), "unet is wrapped in a DataParallel"),
    "a wrapped UNet": (wrapped("unet", with_lora), "unet is wrapped in a PeftModel"),
    "a wrapped encoder": (wrapped("text_encoder", with_lora), "wrapped in a PeftModel"),
    "a quantised UNet": (wrapped("unet", quantised), "is quantised"),
    "a quantised encoder": (wrapped("text_encoder", quantised), "is quantised"),
    "weights of one byte": (
        lambda pipe: pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32),
        "is quantised",
    ),
    "an offloaded part": (
        lambda pipe: cpu_offload(pipe.unet, execution_device=torch.device("cpu")),
        "is offloaded",
    ),
    "a compiled middle": (middle_compiled, "belongs to a compiled layer"),
    "an IP-Adapter": (with_ip_adapter, "IP"),
    "keys of its own": (with_keys_of_its_own, "CustomDiffusionAttnProcessor"),
}


@pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning")
@pytest.mark.parametrize("how", OTHERWISE)
def test_a_part_that_is_not_as_it_was_trained_is_refused_for_the_reason(how: str) -> None:
    spoil, said = OTHERWISE[how]
    backbone = Backbone(make_tiny_pipeline(), "mine", guidance=4.0, steps=3)
    spoil(backbone.pipe)
    with refused(said):
        erase(backbone, NEON, others(NEON), EXACT)
    with refused(said):
        Backbone(backbone.pipe, "mine")


def test_an_ip_adapter_that_was_loaded_after_wrapping_is_said_before_drawing() -> None:
    backbone = Backbone(make_tiny_pipeline(), "mine", guidance=4.0, steps=3)
    with_ip_adapter(backbone.pipe)
    with refused("'encoder_hid_dim_type': 'ip_image_proj'", "without an IP-Adapter"):
        backbone.generate(["neon"])
    backbone.unet.encoder_hid_proj = backbone.unet.config.encoder_hid_dim_type = None
    backbone.unet.set_default_attn_processor()
    assert changed(latents(backbone), latents(shared())) < 1e-3


def unet_config(**entries: Any) -> Callable[[StableDiffusionPipeline], None]:
    return lambda pipe: pipe.unet.register_to_config(**entries)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (meta("unet"), "never loaded"),
        (meta("text_encoder"), "never loaded"),
        (meta("vae"), "never loaded"),
        (lambda pipe: setattr(pipe, "tokenizer", None), "no tokenizer"),
        (lambda pipe: setattr(pipe, "vae", None), "no vae"),
        (lambda pipe: setattr(pipe, "text_encoder", None), "no text_encoder"),
        (lambda pipe: pipe.tokenizer.add_tokens(["<mine>"]), "embeddings"),
        (unet_config(in_channels=9), "paint into a given picture"),
        (unet_config(in_channels=8), "8 channels"),
        (unet_config(out_channels=8), "gives 8"),
        (unet_config(addition_embed_type="text_time"), "addition_embed_type"),
        (unet_config(class_embed_type="timestep"), "class_embed_type"),
        (unet_config(time_cond_proj_dim=256), "time_cond_proj_dim"),
    ],
)
def test_a_pipeline_that_cannot_draw_from_words_is_refused(spoil: Callable, said: str) -> None:
    pipe = make_tiny_pipeline()
    spoil(pipe)
    with refused(said):
        Backbone(pipe, "mine")


def test_another_kind_of_pipeline_is_refused() -> None:
    pipe = make_tiny_pipeline()
    with refused("StableDiffusionImg2ImgPipeline"):
        check_pipeline(
            StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
        )


def test_a_tokenizer_that_forgot_its_length_takes_the_text_encoder_s() -> None:
    pipe = make_tiny_pipeline()
    pipe.tokenizer.model_max_length = 10**30
    backbone = Backbone(pipe, "mine", guidance=4.0, steps=3)
    assert torch.equal(latents(backbone), latents(shared()))
    pipe.tokenizer.model_max_length = 1000  # after wrapping too
    assert torch.equal(latents(backbone), latents(shared()))
    assert torch.equal(backbone.encode(["neon"]), shared().encode(["neon"]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tokenizer: tokenizer.add_tokens(["<mine>"]), "resize the embeddings"),
        (lambda tokenizer: setattr(tokenizer, "padding_side", "left"), "padding_side = 'left'"),
        (lambda tokenizer: setattr(tokenizer, "truncation_side", "left"), "trained with 'right'"),
    ],
)
@pytest.mark.parametrize(
    "does",
    [
        lambda backbone: backbone.encode(["neon"]),
        lambda backbone: backbone.generate(["neon"]),
        lambda backbone: erase(backbone, NEON, others(NEON), EXACT),
        lambda backbone: Backbone(backbone.pipe, "wrapped again"),
    ],
)
def test_a_tokenizer_that_was_changed_is_refused(change: Callable, said: str, does) -> None:
    backbone = Backbone(make_tiny_pipeline(), "mine", guidance=4.0, steps=3)
    change(backbone.pipe.tokenizer)
    with refused(said):
        does(backbone)


# ---------------------------------------------------------------------- one file
needs_clip = pytest.mark.skipif(
    CLIP_MERGES.path() is None, reason="open-clip-torch is not installed (make does it)"
)


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Miniatures in place of the published shapes."""
    monkeypatch.setattr(loading, "SHAPES", {name: miniature_of(s) for name, s in SHAPES.items()})


@needs_clip
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("sd14", torch.float32), ("sd14", torch.float16), ("sdxl", torch.float32)],
)
def test_a_single_file_is_the_model_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    small(monkeypatch)
    random_pipeline(name, miniature=True).save_pretrained(tmp_path / "folder")
    original = Backbone.load(tmp_path / "folder", device="cpu")
    file = one_file(original.pipe.to(dtype), tmp_path / "model.safetensors")
    original.pipe.to(torch.float32)
    before = everything(tmp_path)
    loaded = Backbone.load(file, device="cpu")
    assert same_model(loaded.fingerprint, original.fingerprint)
    assert loaded.name == "model.safetensors"
    prompts = ["a painting by Van Gogh, 1889", ""]
    if dtype == torch.float32:
        state = original.unet.state_dict()
        assert all(torch.equal(w, state[name]) for name, w in loaded.unet.state_dict().items())
        # Where in memory a weight lies can decide how a product is added up.
        drawn = (model.generate(prompts, steps=2, output="latents") for model in (loaded, original))
        assert changed(*drawn) < 1e-4
    assert loaded.reads(prompts[0]) == original.reads(prompts[0])
    assert everything(tmp_path) == before


@needs_clip
@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ("cond_stage_model.transformer.text_model.final_layer_norm.weight", "was never loaded"),
        ("model.diffusion_model.input_blocks.1.0.out_layers.3.weight", "give a whole checkpoint"),
        ("first_stage_model.decoder.conv_out.weight", "give a whole checkpoint"),
    ],
)
def test_a_single_file_that_lacks_a_weight_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: str, said: str
) -> None:
    small(monkeypatch)
    file = one_file(random_pipeline("sd14", miniature=True), tmp_path / "model.safetensors")
    tensors = load_file(file)
    del tensors[lacks]
    save_file(tensors, file)
    with refused(said):
        Backbone.load(file, device="cpu")
    assert everything(tmp_path) == [file]


@needs_clip
@pytest.mark.parametrize("name", ["model.sft", "MODEL.SAFETENSORS"])
def test_a_single_file_has_its_suffix_in_any_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    small(monkeypatch)
    pipe = random_pipeline("sd14", miniature=True)
    one_file(pipe, tmp_path / "model.safetensors").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    loaded = Backbone.load(name, device="cpu")
    assert loaded.name == name
    assert loaded.fingerprint == Backbone(pipe, "same").fingerprint


@needs_clip
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_a_single_file_of_2x_is_asked_what_it_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, predicts: str
) -> None:
    small(monkeypatch)
    pipe = random_pipeline("sd21", miniature=True)
    monkeypatch.setattr(loading, "_predicts_noise", lambda _: predicts == "epsilon")
    loaded = Backbone.load(one_file(pipe, tmp_path / "two.safetensors"), device="cpu")
    assert loaded.prediction_type == predicts
    assert loaded.latent_shape[1] == (64 if predicts == "epsilon" else 8)
    for name in ("text_encoder", "unet", "vae"):
        own, other = (getattr(p, name).state_dict() for p in (pipe, loaded.pipe))
        assert all(torch.equal(own[key], other[key]) for key in own)


@needs_clip
def test_xl_is_read_from_the_files_of_either_number_type(tmp_path: Path) -> None:
    pipe = random_pipeline("sdxl", miniature=True)
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    pipe.save_pretrained(tmp_path / "full")
    pipe.to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    full = Backbone.load(tmp_path / "full", device="cpu")
    half = Backbone.load(tmp_path / "half", device="cpu", dtype=torch.float16)
    assert same_model(half.fingerprint, full.fingerprint)
    told = full.conditioning([""])
    assert torch.equal(told[:, :-1], full.encode([""]))  # as its config says, and not zeros


class Echo(torch.nn.Module):
    """A UNet that gives back a mixture of what it was given and of something else."""

    config = type("config", (), {"in_channels": 4, "cross_attention_dim": 8})
    dtype = torch.float32

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x_t: torch.Tensor, t: int, text: torch.Tensor) -> Any:
        other = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(1))
        return type("output", (), {"sample": self.share * x_t + (1 - self.share) * other})


@pytest.mark.parametrize(("share", "noise"), [(1.0, True), (0.8, True), (0.1, False), (0, False)])
def test_a_model_that_gives_noise_back_predicts_noise(share: float, noise: bool) -> None:
    assert loading._predicts_noise(type("pipe", (), {"unet": Echo(share)})) == noise


@pytest.mark.parametrize(
    ("name", "tensors", "said"),
    [
        ("lora.safetensors", {"unet.lora_A.weight": torch.zeros(2, 2)}, "no checkpoint of Stable"),
        ("wide.safetensors", {loading._TO_K: torch.zeros(2, 4096)}, "here 4096"),
        ("refiner.safetensors", {loading._TO_K_XL: torch.zeros(2, 1280)}, "a refiner"),
        (
            "inpainting.safetensors",
            {loading._TO_K: torch.zeros(2, 768), loading._CONV_IN: torch.zeros(2, 9, 3, 3)},
            "here 768 and 9",
        ),
        ("half.safetensors", {loading._TO_K: torch.zeros(2, 768)}, "no Stable Diffusion pipeline"),
        ("cut.safetensors", b"\x10\0\0\0\0\0\0\0{", "not a whole safetensors file"),
        ("empty.safetensors", b"", "not a whole safetensors file"),
        ("pointer.safetensors", POINTER, "git lfs pull"),
        ("model.ckpt", b"\x80\x02", "a file and no Stable Diffusion pipeline"),
        ("model.bin", b"", "a file and no Stable Diffusion pipeline"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(
    tmp_path: Path, name: str, tensors: dict[str, torch.Tensor] | bytes, said: str
) -> None:
    file = tmp_path / name
    file.write_bytes(tensors) if isinstance(tensors, bytes) else save_file(tensors, file)
    with refused(said, str(file)):
        Backbone.load(file, device="cpu")
    assert everything(tmp_path) == [file]


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda content: content[:-100], "not a whole safetensors file"),
        (lambda content: content[:50], "not a whole safetensors file"),
        (lambda _: b"", "not a whole safetensors file"),
        (lambda _: POINTER, "git lfs pull"),
    ],
)
def test_the_file_that_is_damaged_is_named(tmp_path: Path, part: str, spoil, said: str) -> None:
    make_tiny_pipeline().save_pretrained(tmp_path)
    (file,) = (tmp_path / part).glob("*.safetensors")
    file.write_bytes(spoil(file.read_bytes()))
    with refused(str(file), said):
        Backbone.load(tmp_path, device="cpu")


@pytest.mark.parametrize("load", [ConceptDelta.load, DenseDelta.load, Judge.load])
def test_a_pointer_to_a_file_is_not_the_file(tmp_path: Path, load: Callable) -> None:
    file = tmp_path / "neon.safetensors"
    file.write_bytes(POINTER)
    with refused(str(file), "git lfs pull"):
        load(file)


def test_what_a_killed_load_left_is_swept_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    left, alive = (tmp_path / f".sepme-{pid}-1.tmpx" for pid in (process.pid, os.getpid()))
    for folder in (left, alive):
        folder.mkdir()
        (folder / "model_index.json").write_text("{")
    file, made = tmp_path / "model.safetensors", []
    save_file({loading._TO_K: torch.zeros(2, 768)}, file)
    monkeypatch.setattr(loading, "_write_configs", lambda folder, _: made.append(folder.name))
    with refused("no Stable Diffusion pipeline"):
        Backbone.load(file, device="cpu")
    assert made[0].startswith(f".sepme-{os.getpid()}-")  # the next one finds it by its name
    assert everything(tmp_path) == [alive, alive / "model_index.json", file]


def test_without_clip_s_vocabulary_a_single_file_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(CLIP_MERGES), "path", lambda _: None)
    file = tmp_path / "model.safetensors"
    save_file({loading._TO_K: torch.zeros(2, 768)}, file)
    with refused("open-clip-torch"):
        Backbone.load(file, device="cpu")
