"""Bad input is refused in one sentence before any work starts, and nothing half-done remains.

What one module refuses is tested beside it; here is what goes through several, and the state of
the disk and of the model afterwards.
"""

import ast
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from sepme.erasure import erase
from sepme.model import Backbone
from tests.miniature import FROM_ZERO, KEPT, NEON, QUICK, fresh, shared, watched
from tests.refusals import refused
from tests.tiny import WIDTH, make_tiny_pipeline

ROOT = Path(__file__).parent.parent


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


# ---------------------------------------------------------------- folders that are no model
@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "miniature"
    make_tiny_pipeline().save_pretrained(path)
    return path


SPOILT: dict[str, Callable[[Path], object]] = {
    "no vae": lambda folder: shutil.rmtree(folder / "vae"),
    "an unknown pipeline": lambda folder: (folder / "model_index.json").write_text(
        '{"_class_name": "Easel", "unet": [1, 2]}'
    ),
    "no JSON": lambda folder: (folder / "model_index.json").write_text("{"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_what_is_no_pipeline_is_refused(saved: Path, tmp_path: Path, how: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    SPOILT[how](folder)
    before = contents(tmp_path)
    with refused(str(folder), "no Stable Diffusion pipeline", "model_index.json"):
        Backbone.load(folder)
    assert contents(tmp_path) == before


def test_a_place_without_a_pipeline_is_refused_before_anything_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no hub can know is not looked for there; a name that one might know is."""
    asked = []
    load = "sepme.loading.StableDiffusionPipeline.load_config"
    monkeypatch.setattr(load, lambda name, **_: asked.append(name) or missing())

    def missing() -> None:
        raise OSError

    (tmp_path / "README.md").write_text("# Not a model")
    for place, words in (
        (tmp_path / "README.md", "is a file"),
        (tmp_path, "The folder"),
        (tmp_path / "nowhere", "There is no folder"),
        (Path("models", "of", "mine"), "There is no folder"),
    ):
        with refused(f"'{place}'", words, "model_index.json"):
            Backbone.load(place)
    assert asked == []
    with refused("There is no folder 'no/model'", "the hub"):
        Backbone.load("no/model")
    assert asked == ["no/model"]


def test_sampling_advice_that_cannot_be_read_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    for text in ("{", "[]", '{"guidance_scale": "much"}', '{"guidance_scale": []}'):
        (folder / "generation.json").write_text(text)
        with refused("generation.json", "guidance_scale"):
            Backbone.load(folder, device="cpu")


def test_a_device_that_is_not_there_is_refused(saved: Path) -> None:
    for device in ("cuda:99", "easel"):
        with refused(f"'{device}'", "is not there"):
            Backbone.load(saved, device=device)


def test_a_missing_shipped_model_is_refused(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sepme.model.ATELIER", tmp_path / "atelier")
    with refused("shipped model is missing", str(tmp_path)):
        Backbone.load()


# ---------------------------------------------------------------- pipelines that cannot be edited
def with_nan(part: str, name: str) -> Callable:
    def spoil(pipe) -> None:
        getattr(pipe, part).get_parameter(name).data.view(-1)[3] = math.nan

    return spoil


def without_cross_attention(pipe) -> None:
    pipe.unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        mid_block_type=None,
        cross_attention_dim=WIDTH,
        norm_num_groups=8,
    )


def of_another_width(pipe) -> None:
    pipe.unet = UNet2DConditionModel.from_config(
        dict(pipe.unet.config) | {"cross_attention_dim": 64}
    )


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (with_nan("unet", "conv_in.weight"), ("'unet.conv_in.weight'", "not finite")),
        (
            with_nan("text_encoder", "final_layer_norm.bias"),
            ("text_encoder.", "final_layer_norm.bias'", "not finite"),
        ),
        (without_cross_attention, ("no 'attn2.to_k'", "Stable Diffusion")),
        (of_another_width, ("64 inputs", f"embedding has {WIDTH}")),
        (lambda pipe: pipe.unet.fuse_qkv_projections(), ("are fused", "fuse_qkv_projections")),
        (
            lambda pipe: pipe.scheduler.register_to_config(prediction_type="flow"),
            ("'flow'", "epsilon, v_prediction"),
        ),
    ],
    ids="nan_in_unet nan_in_text no_layers width fused prediction".split(),
)
def test_a_pipeline_that_cannot_be_edited_is_refused(
    spoil: Callable, words: tuple[str, ...]
) -> None:
    pipe = make_tiny_pipeline()
    spoil(pipe)
    with refused(*words):
        Backbone(pipe, "spoilt")


def test_weights_that_break_later_stop_the_first_step(tmp_path: Path) -> None:
    """As when a half-precision model overflows: the loss says so, and nothing is written."""
    backbone, steps = fresh(), []
    backbone.unet.conv_out.bias.data[0] = math.nan
    with refused("loss of iteration 1 is nan", "model's weights"):
        erase(backbone, NEON, KEPT, FROM_ZERO, trainer=watched(steps))
    assert steps == []


# ---------------------------------------------------------------- requests
REQUESTS: dict[str, tuple[Callable[[Backbone], object], tuple[str, ...]]] = {
    "no prompt to encode": (lambda b: b.encode([]), ("no prompt to encode",)),
    "no prompt to draw": (lambda b: b.generate([]), ("one prompt",)),
    "seeds": (lambda b: b.generate(["ink"] * 3, [1, 2]), ("3 prompts", "2 seeds")),
    "output": (lambda b: b.generate(["ink"], output="svg"), ("output = 'svg'", "latents")),
    "batch": (lambda b: b.generate(["ink"], batch=0), ("batch = 0", "at least 1")),
    "no steps": (lambda b: b.generate(["ink"], steps=0), ("steps = 0", "1 to 1000")),
    "many steps": (lambda b: b.generate(["ink"], steps=5000), ("steps = 5000", "1 to 1000")),
    "endless": (lambda b: b.generate(["ink"], guidance=math.inf), ("guidance = inf",)),
    "negative": (lambda b: b.generate(["ink"], guidance=-1), ("guidance = -1", "0 (no words)")),
    "no number": (lambda b: b.generate(["ink"], guidance=math.nan), ("guidance = nan",)),
    "below 1": (lambda b: b.generate(["ink"], guidance=0.5), ("guidance = 0.5", "or more")),
    "kept": (lambda b: erase(b, NEON, ["Neon"]), ("'neon'", "also to be kept")),
    "exhausted": (lambda b: erase(b, NEON, everything(), QUICK), ("the largest shares by", "'")),
}


def everything() -> list[str]:
    words = "boat car cat fish house tree ink oil swirl".split()
    return [f"{a} {b}" for a in words for b in words]


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_that_cannot_be_met_is_refused_and_leaves_no_trace(name: str) -> None:
    request, words = REQUESTS[name]
    backbone = shared()
    modules = list(backbone.unet.state_dict())
    with refused(*words):
        request(backbone)
    assert backbone.composition is None
    assert list(backbone.unet.state_dict()) == modules


# ---------------------------------------------------------------- the sentences themselves
def refusals() -> list[tuple[str, list[str]]]:
    """Every `SepmeError(...)` of the package: where, and the literal parts of its message."""
    found = []
    for file in sorted((ROOT / "sepme").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "SepmeError"):
                continue
            message = node.args[0]
            parts = message.values if isinstance(message, ast.JoinedStr) else [message]
            texts = [part.value if isinstance(part, ast.Constant) else "{}" for part in parts]
            found.append((f"{file.relative_to(ROOT)}:{node.lineno}", texts))
    return found


def test_every_refusal_begins_and_ends_like_a_sentence() -> None:
    written = refusals()
    assert len(written) > 40
    for where, texts in written:
        begins = re.match(r"[A-Z]|\{\}|['\"]|[a-z_]+ ?=", texts[0])
        assert begins, f"{where} begins with {texts[0]!r}"
        if texts != ["{}"]:  # put together elsewhere
            assert texts[-1].endswith(".") or texts[-1] == "{}", f"{where} ends with {texts[-1]!r}"
        assert "\n" not in "".join(texts), where


def test_the_model_survived_all_of_it() -> None:
    assert torch.equal(shared().generate(["neon"]), fresh().generate(["neon"]))
