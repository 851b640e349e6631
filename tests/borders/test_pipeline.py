"""Pipelines as users leave them: other adapters, fused, compiled, half precision; and pictures."""

import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from PIL import Image
from torch import Tensor, nn

from sepme.artefact import same_model
from sepme.cli._pictures import picture_files, read_picture
from sepme.composition import Composition
from sepme.concept import Concept
from sepme.delta import ConceptDelta
from sepme.erasure import PRESETS, erase
from sepme.errors import SepmeWarning
from sepme.model import Backbone
from sepme.shapes import CLIP_MERGES, random_pipeline
from tests.miniature import EXACT, KEPT, NEON, QUICK, QUIET, fresh, others
from tests.refusals import refused

NAMES = ("neon", "ink")


def lora(module: nn.Module, part: str, ends: tuple[str, ...], size: float = 0.3) -> dict:
    """A user's LoRA on the layers of these names, as a file would hold it."""
    rng, state = torch.Generator().manual_seed(1), {}
    for path, layer in module.named_modules():
        name = path.removesuffix(".base_layer")
        if name.endswith(ends) and isinstance(layer, nn.Linear):
            for factor, shape in (("A", (2, layer.in_features)), ("B", (layer.out_features, 2))):
                values = size * torch.randn(*shape, generator=rng)
                state[f"{part}.{name}.lora_{factor}.weight"] = values
    assert state
    return state


class Case:
    """A pipeline, two deltas for it, and what can be done to it from outside."""

    def __init__(self) -> None:
        self.backbone = fresh()
        self.pipe, self.unet = self.backbone.pipe, self.backbone.unet
        concepts = [Concept(name, (name,)) for name in NAMES]
        self.deltas = [erase(self.backbone, c, others(c), EXACT) for c in concepts]
        self.original = self.draw()

    def draw(self) -> Tensor:
        return self.backbone.generate(["neon", "ink"], 3, steps=2, output="latents")

    def style(self, ends: tuple[str, ...] = ("attn1.to_q",)) -> None:
        self.pipe.load_lora_weights(lora(self.unet, "unet", ends), adapter_name="style")

    def on(self) -> set[str]:
        """The adapters that are on, as diffusers says."""
        return set(self.pipe.get_active_adapters()) if hasattr(self.unet, "peft_config") else set()


#: What a user may do to the pipeline while neon is erased, and takes nothing of ours away for good.
MEANWHILE: dict[str, Callable[[Case], None]] = {
    "loads a LoRA on self-attention": Case.style,
    "loads a LoRA on the same layers": lambda case: case.style(("attn2.to_k", "attn2.to_v")),
    "switches all LoRAs off": lambda case: case.pipe.disable_lora(),
    "switches to another adapter": lambda case: case.unet.set_adapters(["sepme_0"], [0.0]),
    "unloads all LoRAs": lambda case: case.pipe.unload_lora_weights(),
    "deletes one of ours": lambda case: case.unet.delete_adapters(["sepme_1"]),
    "changes a strength": lambda case: case.unet.set_adapters(["sepme_0", "sepme_1"], [0.0, 0.5]),
}


@pytest.mark.parametrize("what", MEANWHILE)
def test_what_is_on_is_read_from_the_pipeline_and_switching_again_repairs(what: str) -> None:
    case = Case()
    with Composition(case.backbone, case.deltas) as composition:
        composition.erase("neon")
        erased = case.draw()
        assert composition.active == ("neon",)
        MEANWHILE[what](case)
        if composition.strengths != {"neon": 1.0}:  # else nothing has come back
            with refused("switch again with set()"):
                case.draw()
        composition.set(["neon"])
        assert composition.active == ("neon",)
        again = case.draw()
        if "style" not in case.on():
            assert torch.equal(again, erased)
        composition.restore_all()
        assert composition.active == ()
    if "style" not in case.on():
        assert torch.equal(case.draw(), case.original)


@pytest.mark.parametrize("ends", [("attn1.to_q",), ("attn2.to_k", "attn2.to_v")])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_user_s_lora_is_left_as_it_was_found(ends: tuple[str, ...], when: str) -> None:
    case = Case()
    if when == "before":
        case.style(ends)
        styled = case.draw()
    composition = Composition(case.backbone, case.deltas)
    if when == "meanwhile":
        case.style(ends)
        composition.set([])
        styled = case.draw()
    assert not torch.equal(styled, case.original)
    composition.erase("neon")
    assert "style" in case.on()
    assert not torch.equal(case.draw(), styled)
    composition.restore("neon")
    assert torch.equal(case.draw(), styled)
    composition.close()
    assert case.on() == {"style"}
    assert torch.equal(case.draw(), styled)
    case.pipe.unload_lora_weights()
    assert torch.equal(case.draw(), case.original)


def test_a_user_s_lora_that_was_off_stays_off() -> None:
    case = Case()
    case.style()
    case.pipe.disable_lora()
    with Composition(case.backbone, case.deltas) as composition:
        assert torch.equal(case.draw(), case.original)
        composition.erase("neon")
        composition.restore_all()
        assert torch.equal(case.draw(), case.original)
    assert torch.equal(case.draw(), case.original)
    case.pipe.enable_lora()
    assert not torch.equal(case.draw(), case.original)  # it was only off


@pytest.mark.parametrize("does", ["set", "erase", "restore", "restore_all", "close"])
def test_nothing_is_switched_while_adapters_are_fused(does: str) -> None:
    case = Case()
    composition = Composition(case.backbone, case.deltas)
    composition.erase("neon")
    case.pipe.fuse_lora()
    given = {"set": [["ink"]], "erase": ["ink"], "restore": ["neon"]}.get(does, [])
    with refused("fused", "unfuse_lora"):
        getattr(composition, does)(*given)
    with refused("fused"):
        Composition(case.backbone, case.deltas)
    case.pipe.unfuse_lora()
    composition.close()
    moved = (case.draw() - case.original).abs().max()
    assert moved < 1e-3  # up to rounding, as the sentence says


def test_bit_for_bit_holds_where_nothing_was_fused() -> None:
    case = Case()
    with Composition(case.backbone, case.deltas) as composition:
        composition.erase(*NAMES)
        composition.restore_all()
        assert torch.equal(case.draw(), case.original)


# ---------------------------------------------------------------------- the text encoder
def words(backbone: Backbone, size: float = 0.3) -> None:
    state = lora(backbone.pipe.text_encoder, "text_encoder", ("q_proj", "v_proj"), size)
    backbone.pipe.load_lora_weights(state, adapter_name="words")


def test_an_adapter_on_the_text_encoder_is_part_of_the_model() -> None:
    case = Case()
    plain = case.backbone.fingerprint
    words(case.backbone)
    own = case.backbone.encode(["neon"])
    assert case.backbone.fingerprint != plain
    with refused("text encoder carries an adapter"):
        Composition(case.backbone, case.deltas)
    delta = erase(case.backbone, NEON, others(NEON), EXACT)
    assert delta.base == case.backbone.fingerprint
    with Composition(case.backbone, [delta]) as composition:
        composition.erase("neon")
        assert torch.equal(case.backbone.encode(["neon"]), own)
        composition.restore_all()
        assert torch.equal(case.backbone.encode(["neon"]), own)
    assert torch.equal(case.backbone.encode(["neon"]), own)
    other = fresh()
    words(other, size=0.31)  # another strength is another model
    assert other.fingerprint not in (plain, delta.base)
    case.pipe.unload_lora_weights()
    assert case.backbone.fingerprint == plain


# ---------------------------------------------------------------------- wrapped, and in half
@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_a_compiled_part_is_unwrapped(part: str) -> None:
    case = Case()
    pipe = case.backbone.pipe
    setattr(pipe, part, torch.compile(getattr(pipe, part)))  # nothing is compiled until a call
    backbone = Backbone(pipe, "compiled", case.backbone.guidance, case.backbone.steps)
    assert backbone.fingerprint == case.backbone.fingerprint
    assert list(backbone.projections()) == list(case.backbone.projections())
    with Composition(backbone, case.deltas) as composition:
        composition.erase("neon")
        composition.restore_all()
    case.backbone = backbone
    assert torch.equal(case.draw(), case.original)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_delta_made_in_float32_goes_on_a_model_of_another_type(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    case = Case()
    case.pipe.save_pretrained(tmp_path / "model")
    backbone = Backbone.load(tmp_path / "model", dtype=dtype)
    assert backbone.dtype == dtype
    assert same_model(backbone.fingerprint, case.backbone.fingerprint)
    with Composition(backbone, case.deltas) as composition:
        composition.erase("neon")
        assert composition.active == ("neon",)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_parts_of_different_types_draw_and_are_erased_from(part: str, dtype: torch.dtype) -> None:
    backbone = fresh()
    wanted = backbone.generate(["neon"], steps=2)
    getattr(backbone.pipe, part).to(dtype)
    assert (backbone.generate(["neon"], steps=2) - wanted).abs().max() < 0.02
    assert backbone.encode(["neon"]).dtype == backbone.dtype
    erase(backbone, NEON, others(NEON), QUICK, trainer=QUIET)
    assert not any(module._forward_pre_hooks for module in backbone.unet.modules())


# ---------------------------------------------------------------------- what changes pictures
class Censor(nn.Module):
    """A safety checker that blacks every picture out, and a watermark that does."""

    device, dtype = torch.device("cpu"), torch.float32

    def forward(self, images: np.ndarray, **_: object) -> tuple[np.ndarray, list[bool]]:
        return 0 * images, [True] * len(images)

    def apply_watermark(self, images: Tensor) -> Tensor:
        return 0 * images


class Features(dict):
    """What a feature extractor gives of pictures."""

    pixel_values = torch.zeros(1)

    def __call__(self, *_: object, **__: object) -> "Features":
        return self

    def to(self, *_: object) -> "Features":
        return self


def test_no_picture_is_blacked_out_and_the_checker_stays_the_user_s() -> None:
    backbone, censor = fresh(), Censor()
    wanted = backbone.generate(["neon"], steps=2)
    backbone.pipe.safety_checker, backbone.pipe.feature_extractor = censor, Features()
    assert backbone.pipe("neon", num_inference_steps=1, output_type="np").images.max() == 0
    assert torch.equal(backbone.generate(["neon"], steps=2), wanted)
    assert backbone.pipe.safety_checker is censor
    with pytest.raises(KeyError):  # when drawing ends in an error too
        backbone.generate(["neon"], steps=1, on_step=lambda *_: {}["nothing"])
    assert backbone.pipe.safety_checker is censor


@pytest.mark.skipif(CLIP_MERGES.path() is None, reason="open-clip-torch is not installed")
def test_no_picture_of_xl_is_watermarked_and_the_mark_stays_the_user_s() -> None:
    backbone, mark = Backbone(random_pipeline("sdxl", miniature=True), "xl"), Censor()
    wanted = backbone.generate(["a cat"], steps=1)
    backbone.pipe.watermark = mark
    assert torch.equal(backbone.generate(["a cat"], steps=1), wanted)
    assert backbone.pipe.watermark is mark


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_lora_that_is_trained_with_dropout_draws_without(part: str) -> None:
    backbone = fresh()
    module = getattr(backbone.pipe, part)
    ends = ["to_q" if part == "unet" else "q_proj"]
    module.add_adapter(
        LoraConfig(r=2, lora_dropout=0.5, target_modules=ends, init_lora_weights=False)
    )
    dropout = [layer for layer in module.modules() if isinstance(layer, nn.Dropout)]
    before = [layer.training for layer in dropout]
    assert any(before)
    one, two = (backbone.generate(["neon"], steps=2) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(backbone.encode(["neon"]), backbone.encode(["neon"]))
    assert [layer.training for layer in dropout] == before


def test_a_seed_is_the_same_noise_whatever_torch_s_default_type() -> None:
    backbone = fresh()
    wanted = backbone.generate(["neon"], steps=2)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(backbone.generate(["neon"], steps=2), wanted)
    finally:
        torch.set_default_dtype(torch.float32)


# ---------------------------------------------------------------------- seeds
@pytest.mark.parametrize(
    "seeds",
    [
        *(3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)),
        *([3, 4], (3, 4), range(3, 5), np.arange(3, 5), torch.arange(3, 5)),
        *([np.int32(3), torch.tensor(4)], iter([3, 4]), {3: 0, 4: 0}),
    ],
    ids=lambda seeds: type(seeds).__name__,
)
def test_whole_numbers_of_any_type_are_seeds(seeds: object) -> None:
    backbone = fresh()
    wanted = backbone.generate(["neon", "ink"], [3, 4], steps=1)
    assert torch.equal(backbone.generate(["neon", "ink"], seeds, steps=1), wanted)


@pytest.mark.parametrize(
    "seeds",
    [
        *(1.0, "3", None, np.float32(3), torch.tensor(3.0), [1.0, 2.0], ["1", "2"], [[1], [2]]),
        *(True, [True, False], np.True_, torch.tensor(True), [torch.tensor(True), 2]),
        *(-1, [-1, 2], 2**63, [0, 2**64], [1], [1, 2, 3], []),
    ],
    ids=lambda seeds: type(seeds).__name__,
)
def test_other_seeds_are_refused(seeds: object) -> None:
    with refused("seed"):
        fresh().generate(["neon", "ink"], seeds, steps=1)


# ---------------------------------------------------------------------- nothing else kept
@pytest.mark.parametrize("keep", [(), []])
def test_keeping_nothing_is_warned_of(keep: object) -> None:
    with pytest.warns(SepmeWarning, match="Nothing but the empty prompt is kept"):
        erase(fresh(), NEON, keep, PRESETS["closed_form"])


def test_keeping_something_or_choosing_to_keep_nothing_is_not(recwarn) -> None:
    erase(fresh(), NEON, [""], PRESETS["closed_form"])
    delta = erase(fresh(), NEON, KEPT, PRESETS["closed_form"])
    assert isinstance(delta, ConceptDelta)
    assert QUICK.iterations < 100
    assert not [w for w in recwarn if "Nothing but" in str(w.message)]


# ---------------------------------------------------------------------- pictures
def picture(
    folder: Path, name: str, mode: str = "RGB", size: tuple = (8, 8), **how: object
) -> Path:
    image = Image.new(mode, size, how.pop("color", 0))
    image.save(folder / name, **how)
    return folder / name


@pytest.mark.parametrize(
    ("name", "mode", "color", "value"),
    [
        ("a.png", "RGB", (255, 0, 0), (1, 0, 0)),
        ("a.png", "L", 255, (1, 1, 1)),
        ("a.png", "1", 1, (1, 1, 1)),
        ("a.png", "P", 0, (0, 0, 0)),
        ("a.png", "RGBA", (0, 0, 0, 0), (1, 1, 1)),  # transparent is white
        ("a.png", "RGBA", (255, 0, 0, 255), (1, 0, 0)),
        ("a.png", "LA", (0, 255), (0, 0, 0)),
        ("a.bmp", "RGB", (0, 255, 0), (0, 1, 0)),
        ("a.webp", "RGB", (0, 0, 0), (0, 0, 0)),
        ("a.gif", "L", 255, (1, 1, 1)),
        ("a.tiff", "CMYK", (0, 0, 0, 0), (1, 1, 1)),
    ],
)
def test_pictures_that_are_understood(
    name: str, mode: str, color: object, value: tuple, tmp_path: Path
) -> None:
    pixels = read_picture(picture(tmp_path, name, mode, color=color), 8)
    assert pixels.shape == (3, 8, 8)
    assert torch.allclose(pixels[:, 0, 0], torch.tensor(value, dtype=torch.float32), atol=0.02)


def test_a_picture_is_turned_as_its_file_says(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8))
    image.putpixel((0, 0), (255, 255, 255))
    turned = image.getexif()
    turned[0x0112] = 3  # by half a turn
    image.save(tmp_path / "a.png", exif=turned)
    assert read_picture(tmp_path / "a.png", 8)[0, 7, 7] == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read as a picture"),
        (b"no picture", "cannot be read as a picture"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "cannot be read as a picture"),
        (b"GIF89a", "cannot be read as a picture"),
        (b"BM" + b"\xff" * 60, "cannot be read as a picture"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with refused("a.png", said):
        read_picture(tmp_path / "a.png", 8)


def sixteen_bits(size: int, colours: int) -> bytes:
    """A PNG file of 16 bits a channel, in PNG's numbers for RGB, RGBA and grey with alpha."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    head = struct.pack(">IIBBBBB", size, size, 16, colours, 0, 0, 0)
    rows = (b"\0" + bytes(2 * {2: 3, 6: 4, 4: 2}[colours] * size)) * size
    parts = (b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_other_pictures_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch) -> None:
    with refused("16 x 8 pixels"):
        read_picture(picture(tmp_path, "wide.png", size=(16, 8)), 8)
    with refused("8 bits"):
        read_picture(picture(tmp_path, "deep.png", "I;16"), 8)
    for colours, kind in ((2, "deep-rgb.png"), (6, "deep-rgba.png"), (4, "deep-la.png")):
        (tmp_path / kind).write_bytes(sixteen_bits(8, colours))
        with refused(kind, "8 bits"):
            read_picture(tmp_path / kind, 8)
    with refused("cannot be read"):
        read_picture(tmp_path, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # as of a bomb: far more than it says
    with refused("cannot be read as a picture"):
        read_picture(picture(tmp_path, "bomb.png", size=(9, 9)), 9)
    half = picture(tmp_path, "half.png", size=(8, 8), color=(1, 2, 3))
    half.write_bytes(half.read_bytes()[:-30])
    monkeypatch.undo()
    with refused("cannot be read as a picture"):
        read_picture(half, 8)


ENDINGS = ("png", "webp", "bmp", "JPG", "gif", "tiff", "jp2")


@pytest.mark.parametrize("endings", [ENDINGS[:i] for i in range(1, len(ENDINGS) + 1)], ids=len)
def test_a_folder_stands_for_its_pictures_of_whatever_format(
    tmp_path: Path, endings: Sequence[str]
) -> None:
    files = [picture(tmp_path, f"{i}.{ending}") for i, ending in enumerate(endings)]
    (tmp_path / ".hidden").touch()
    assert picture_files([tmp_path]) == files
    for file in files:
        assert read_picture(file, 8).shape == (3, 8, 8)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "more").mkdir()
    with pytest.warns(SepmeWarning, match=r"left out, being no pictures: more, notes\.txt\."):
        assert picture_files([files[0], tmp_path]) == [files[0], *files]


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    for name in (".hidden", "notes.txt", "kept.csv"):
        with refused("holds no pictures"):
            picture_files([tmp_path])
        (tmp_path / name).touch()
