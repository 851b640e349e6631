"""Stable Diffusion 1.4, 2.1 and XL in miniature: the theorem holds on the shapes that people have.

The UNets have the published layers under the published names, and the text the published widths.
"""

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn
from transformers import PreTrainedModel

from sepme.baselines import BASELINES
from sepme.composition import Composition
from sepme.concept import Concept
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS, ErasureSettings, ErasureStep, erase
from sepme.model import Backbone
from sepme.shapes import CLIP_MERGES, PARTS, SHAPES, Shape, clip_tokenizer, random_pipeline
from sepme.training import Trainer
from tests.miniature import QUIET
from tests.refusals import refused

pytestmark = pytest.mark.skipif(
    CLIP_MERGES.path() is None, reason="open-clip-torch is not installed (make does it)"
)
VAN_GOGH = Concept("Van Gogh", ("Van Gogh",))
KEPT = ("Monet", "a church")
#: Whatever is kept counts as kept, to the last bit that the model's number type can tell.
EXACT = replace(PRESETS["closed_form"], keep_rtol=0.0, images=1)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
UNETS = {"sd14": 859_520_964, "sd21": 865_910_724, "sdxl": 2_567_463_684}
TEXTS = {"sd14": (123_060_480,), "sd21": (340_387_840,), "sdxl": (123_060_480, 694_659_840)}


@lru_cache(maxsize=3)
def miniature(name: str, dtype: torch.dtype = torch.float32) -> Backbone:
    return Backbone(random_pipeline(name, miniature=True, dtype=dtype), name, 4.0, 2)


@torch.no_grad()
def noise(backbone: Backbone, prompt: str) -> Tensor:
    """eps(x_t, c, t) `[2, 4, 8, 8]` at two timesteps of the same noise."""
    generator = torch.Generator().manual_seed(7)
    x_t = torch.randn(2, *backbone.latent_shape, generator=generator).to(backbone.dtype)
    text = backbone.conditioning([prompt] * 2)
    return backbone.epsilon(x_t, torch.tensor([250, 700]), text).float()


def change(after: Tensor, before: Tensor) -> float:
    return float((after - before).norm() / before.norm())


def seen(backbone: Backbone, delta: ConceptDelta, prompt: str) -> float:
    """`||e Delta^T|| / ||e W^T||`, the largest over the layers."""
    e = backbone.encode([prompt])[0].double()
    layers = backbone.projections().items()
    return max(
        float((e @ delta.dense(p).double().T).norm() / (e @ layer.weight.double().T).norm())
        for p, layer in layers
    )


# ---------------------------------------------------------------- the shapes
def parts_of(shape: Shape) -> dict[str, nn.Module]:
    """Parts at their full size, without memory."""
    made = {}
    with torch.device("meta"):
        for name, kind in PARTS[shape.kind].items():
            text = issubclass(kind, PreTrainedModel)
            config = shape.parts[name]
            made[name] = kind(kind.config_class(**config)) if text else kind(**config)
    return made


@pytest.mark.parametrize("name", SHAPES)
def test_the_shapes_are_those_that_were_published(name: str) -> None:
    """By the number of their parameters; and a miniature has the same layers, as wide in text."""
    full = parts_of(SHAPES[name])
    sizes = {part: sum(p.numel() for p in module.parameters()) for part, module in full.items()}
    assert sizes.pop("unet") == UNETS[name]
    assert sizes.pop("vae") == 83_653_863
    assert tuple(sizes.values()) == TEXTS[name]
    backbone = miniature(name)
    layers = [n for n, _ in full["unet"].named_modules()]
    assert layers == [n for n, _ in backbone.unet.named_modules()]
    text = [n for n in layers if n.endswith(("attn2.to_k", "attn2.to_v"))]
    assert list(backbone.projections()) == text
    assert len(text) == {"sd14": 32, "sd21": 32, "sdxl": 140}[name]
    assert backbone.d_in == full["unet"].config.cross_attention_dim == SHAPES[name].width
    assert (backbone.tokens, backbone.latent_shape) == (77, (4, 8, 8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_random_weights_predict_noise_of_order_one_and_listen(
    name: str, dtype: torch.dtype
) -> None:
    backbone = miniature(name, dtype)
    assert {p.dtype for part in PARTS[type(backbone.pipe)] for p in part_of(backbone, part)} == {
        dtype
    }
    empty, church = (noise(backbone, prompt) for prompt in ("", "a church"))
    assert 0.5 < empty.std() < 2
    assert 0.1 < change(church, empty) < 2


def part_of(backbone: Backbone, part: str) -> list[nn.Parameter]:
    return list(getattr(backbone.pipe, part).parameters())


def test_the_seed_decides_the_weights() -> None:
    pipes = [random_pipeline("sd14", miniature=True, seed=seed) for seed in (0, 0, 1)]
    a, b, c = (pipe.unet.conv_in.weight for pipe in pipes)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_an_unknown_shape_is_refused() -> None:
    with refused("sd14", "sdxl"):
        random_pipeline("sd3")


def test_the_tokenizer_is_clips() -> None:
    tokenizer = clip_tokenizer()
    start, end = 49406, 49407
    assert tokenizer("a photo of a cat").input_ids == [start, 320, 1125, 539, 320, 2368, end]
    assert tokenizer.tokenize("Van Gogh") == ["van</w>", "gogh</w>"]
    padded = tokenizer("a cat", padding="max_length").input_ids
    assert padded == [start, 320, 2368] + 74 * [end]


# ---------------------------------------------------------------- the theorem
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_kept_prompts_stay_and_all_comes_back(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """What is kept sees a delta by some roundings of the number type; the concept sees all of it.

    A delta that was saved does the same, and without it every bit is as before.
    """
    backbone, eps = miniature(name, dtype), torch.finfo(dtype).eps
    delta = erase(backbone, VAN_GOGH, KEPT, EXACT)
    delta.save(tmp_path / "delta.safetensors")
    loaded = ConceptDelta.load(tmp_path / "delta.safetensors", backbone.fingerprint)
    assert loaded.digest == delta.digest
    for prompt in (*KEPT, ""):
        assert seen(backbone, delta, prompt) < 4 * eps
    assert seen(backbone, delta, "Van Gogh") > 0.1

    prompts = ("Van Gogh", *KEPT, "")
    before = [noise(backbone, prompt) for prompt in prompts]
    drawn = backbone.generate("Van Gogh", output="latents")
    with Composition(backbone, [loaded]) as composition:
        composition.erase("Van Gogh")
        concept, *kept = map(change, [noise(backbone, p) for p in prompts], before)
        composition.restore("Van Gogh")
        assert torch.equal(noise(backbone, "Van Gogh"), before[0])
    assert concept > 0.05
    assert max(kept) < 32 * eps  # roundings in a row of attentions
    assert torch.equal(backbone.generate("Van Gogh", output="latents"), drawn)


@pytest.mark.parametrize("name", SHAPES)
def test_the_default_lands_on_every_shape(name: str) -> None:
    """The correlation falls in small steps and does not overshoot; at twenty times the rate it
    jumps."""
    forget = Concept("Van Gogh", ("Van Gogh", "a field by Van Gogh", "a night by Van Gogh"))
    default = replace(
        PRESETS["default"], iterations=12, images=3, image_steps=1.0, pool=16, tau=0.0
    )

    def jump(numbers: list[float]) -> float:
        return max(abs(b - a) for a, b in pairwise(numbers))

    def correlations(settings: ErasureSettings) -> list[float]:
        steps: list[ErasureStep] = []
        trainer = Trainer(steps.append, progress=False)
        erase(miniature(name), forget, KEPT, settings, trainer=trainer)
        return [step.correlation[0] for step in steps]

    found = correlations(default)
    assert abs(found[-1]) < 0.6 * found[0]
    assert min(found) > -0.1
    assert jump(found) < 0.3 < jump(correlations(replace(default, learning_rate=1.0)))


@pytest.mark.parametrize("name", ["sd14", "sdxl"])
def test_deltas_of_two_concepts_do_not_see_each_other(name: str) -> None:
    """theta + Delta_1 + Delta_2 is, for the first concept, theta + Delta_1."""
    backbone, monet = miniature(name), Concept("Monet", ("Monet",))
    deltas = [
        erase(backbone, VAN_GOGH, ["Monet"], EXACT),
        erase(backbone, monet, ["Van Gogh"], EXACT),
    ]
    with Composition(backbone, deltas) as composition:
        composition.set(["Van Gogh"])
        alone = noise(backbone, "Van Gogh")
        composition.set(["Van Gogh", "Monet"])
        assert change(noise(backbone, "Van Gogh"), alone) < 1e-4
        composition.set(["Monet"])
        assert change(noise(backbone, "Van Gogh"), alone) > 0.05  # it is back


# ---------------------------------------------------------------- Stable Diffusion XL
def test_xl_draws_as_stock_diffusers() -> None:
    """Whatever the prompt; the empty one is what diffusers guides against by default."""
    backbone, prompts = miniature("sdxl"), ["a church", "a painting by Monet"]
    stock = StableDiffusionXLPipeline(**backbone.pipe.components, add_watermarker=False)
    stock.set_progress_bar_config(disable=True)
    x_t = torch.stack(
        [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    )
    how = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "latent"}
    expected = stock(prompts, latents=x_t, **how).images
    assert torch.equal(backbone.generate(prompts, output="latents"), expected)
    typed = stock(prompts, negative_prompt=["", ""], latents=x_t, **how).images
    assert not torch.equal(typed, expected)  # the empty prompt that was typed is another one


def test_xl_is_told_both_embeddings_and_the_pooled_one_of_each_prompt() -> None:
    backbone = miniature("sdxl")
    rows, told = backbone.encode(["a church", ""]), backbone.conditioning(["a church", ""])
    e, _, pooled, _ = backbone.pipe.encode_prompt("a church", do_classifier_free_guidance=False)
    assert rows.shape == (2, 77, 768 + 1280)
    assert told.shape == (2, 78, 2048)
    assert torch.equal(told[0, :77], rows[0])
    assert torch.allclose(rows[0], e[0], atol=1e-4)
    assert torch.allclose(told[0, 77, :1280], pooled[0], atol=1e-4)
    assert told[0, 77, 1280:].eq(0).all()
    assert told[1].eq(0).all()
    assert rows[1].ne(0).any()
    with refused("conditioning(prompts)"):
        backbone.epsilon(torch.zeros(1, 4, 8, 8), torch.tensor([500]), rows[:1])


def test_xl_s_pooled_embedding_is_a_path_that_no_delta_reaches() -> None:
    """Where the concept's tokens are those of a kept prompt, its pooled embedding still speaks,
    with the delta exactly as without."""
    backbone = miniature("sdxl")
    delta = erase(backbone, VAN_GOGH, KEPT, EXACT)
    told = backbone.conditioning(["Van Gogh", "a church"])
    mixed = torch.cat([told[1:, :77], told[:1, 77:]], dim=1)  # the church's tokens, pooled Van Gogh
    x_t, t = torch.randn(1, 4, 8, 8), torch.tensor([500])

    def heard() -> Tensor:
        with torch.no_grad():
            return backbone.epsilon(x_t, t, mixed) - backbone.epsilon(x_t, t, told[1:])

    before = heard()
    with Composition(backbone, [delta]) as composition, composition.erased("Van Gogh"):
        after = heard()
    assert before.std() > 0.05
    assert change(after, before) < 1e-4


def test_xl_s_second_text_encoder_is_part_of_what_the_model_is() -> None:
    pipe = random_pipeline("sdxl", miniature=True)
    whole = Backbone(pipe, "mine").fingerprint
    pipe.text_encoder_2.text_projection.weight.data[0] *= 1.1
    assert Backbone(pipe, "mine").fingerprint[:32] != whole[:32]


def test_forget_me_not_refuses_two_text_encoders() -> None:
    with refused("two", "1.x or 2.x"):
        BASELINES["fmn"].erase(miniature("sdxl"), VAN_GOGH, trainer=QUIET)
