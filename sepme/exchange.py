"""Files that other programs read, written from deltas, and their LoRA files read back.

An export is a folder with the weights and a model card. It holds the sum of the deltas: as a LoRA
with diffusers' or with kohya's names, or folded into a whole pipeline (a folder, or one file of the
original layout). Nobody needs sepme to use it.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path

import torch
from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from sepme import _ldm, loading
from sepme._checks import choose, finite, kinds, texts, whole
from sepme._words import in_code, in_markdown
from sepme.artefact import (
    Provenance,
    canonical_json,
    check_whole,
    read_text,
    refuse_overwriting,
    save_json,
    temporary,
    versions,
    writable_folder,
    write_atomically,
)
from sepme.composition import applied, refuse_attached, refuse_contradictions
from sepme.concept import Concept, slug
from sepme.delta import FLOATS, ConceptDelta, DenseDelta
from sepme.errors import SepmeError, in_words, warn
from sepme.model import Backbone, alone
from sepme.nullspace import row_basis

__all__ = ["export", "import_lora"]

#: What an export may be, in the words of its card.
FORMATS = {
    "peft": "a LoRA file with the names of diffusers and PEFT",
    "kohya": "a LoRA file with the names that AUTOMATIC1111, ComfyUI and Forge read",
    "folder": "a whole diffusers pipeline with the erasure folded into its weights",
    "file": "a whole checkpoint of the original layout with the erasure folded into its weights",
}
#: What may become of layers that a ConceptDelta cannot hold.
EXTRA = ("refuse", "leave", "dense")
#: A factor or an alpha: kohya's and LECO's names, PEFT's, and diffusers' older ones.
_PART = re.compile(
    r"(?:base_model\.model\.|unet\.|lora_unet_)*(?P<module>.+?)"
    r"[._](?:lora(?:_linear_layer)?[._](?P<factor>down|up|A|B)(?:\.\w+)?\.weight|(?P<alpha>alpha))"
)
_FACTORS = {"A": "down", "B": "up"}


@dataclass(frozen=True)
class Export:
    """Where an export lies, and how far it is from the deltas."""

    folder: Path
    weights: Path
    """The LoRA file, the checkpoint, or the pipeline's folder."""
    error: float
    """`||Delta - Delta_written||_F / ||Delta||_F` over all layers: what `rank` and `dtype` cost."""


# ------------------------------------------------------------------ writing
def export(
    model: Backbone,
    deltas: Sequence[ConceptDelta],
    out: str | Path,
    format: str = "peft",
    *,
    strengths: Mapping[str, float] | None = None,
    rank: int | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Export:
    """Write the sum of the deltas, and a card, into a new folder.

    Args:
        deltas: of different concepts, each keeping the others.
        format: a key of `FORMATS`.
        strengths: by concept, 1 where not named.
        rank: the largest rank of a layer; the best approximation of that rank is written.
        dtype: of the tensors, by default float16 for kohya, else what they have.
        overwrite: replace a folder `out` that holds nothing but an earlier export.

    Raises:
        SepmeError: deltas that do not fit the model or one another, an output that is there or is
            the model's own folder, or a model that the format has no names for.
    """
    choose(tuple(FORMATS), format=format)
    out, total = Path(out).absolute(), _total(model, deltas, strengths or {})
    if dtype is not None and dtype not in FLOATS:
        raise SepmeError(f"dtype = {dtype} holds no fractions: give torch.float16 or the like.")
    if format in ("folder", "file"):
        _refuse_unmergeable(model, format)
    if source := model.pipe.name_or_path:
        refuse_overwriting([out], [Path(source)])
    with _whole(out, overwrite) as new:
        written = total if rank is None else truncated(total, rank)
        if format in ("peft", "kohya"):
            dtype = dtype or (torch.float16 if format == "kohya" else None)
            written = _rounded(written, dtype)
        error = _distance(total, written)
        name = f"{slug(total.concept)}.safetensors"
        if format == "peft":
            written.save(new / name)
        elif format == "kohya":
            header = _header(written.provenance) | _kohya_header(model)
            content = _ordered(to_bytes(_kohya_tensors(model, written), header))
            write_atomically(new / name, content)
        else:
            _write_merged(model, written, new, None if format == "folder" else new / name, dtype)
        card = _card(model, total.provenance, format, name, error, rank, dtype)
        card = write_atomically(new / "README.md", card.encode())
        for file in new.rglob("*.safetensors"):  # which safetensors lets nobody else read
            file.chmod(card.stat().st_mode)
    return Export(out, out if format == "folder" else out / name, error)


def truncated(delta: ConceptDelta, rank: int) -> ConceptDelta:
    """The nearest delta, in the Frobenius norm, whose layers have this rank at most.

    The error of a layer is the root of the sum of the squares of its singular values beyond `rank`
    (Eckart & Young 1936).

    Raises:
        SepmeError: a rank that is no whole number, or below 1.
    """
    whole(1, rank=rank)
    rank = min(rank, delta.rank)
    down, up = {}, {}
    for path in delta.paths:
        u, s, vh = torch.linalg.svd(_dense(delta, path), full_matrices=False)
        half = s[:rank].sqrt()  # on either side, so that float16 can hold both
        dtype = delta.up[path].dtype
        up[path], down[path] = (u[:, :rank] * half).to(dtype), (half[:, None] * vh[:rank]).to(dtype)
    settings = {**delta.provenance.settings, "truncated_to": rank}
    return ConceptDelta(down, up, replace(delta.provenance, settings=settings))


def _total(
    model: Backbone, deltas: Sequence[ConceptDelta], strengths: Mapping[str, float]
) -> ConceptDelta:
    """`sum_k s_k Delta_k`."""
    deltas = [deltas] if isinstance(deltas, ConceptDelta) else list(deltas)
    if not deltas:
        raise SepmeError("An export needs ConceptDeltas: load files with ConceptDelta.load.")
    kinds(ConceptDelta, deltas, "load files with ConceptDelta.load")
    fingerprint = model.fingerprint
    for delta in deltas:
        delta.check_model(model, fingerprint)
    names = [delta.concept for delta in deltas]
    if len(set(names)) < len(names):
        raise SepmeError(f"Two deltas are of one concept among {', '.join(names)}: leave one out.")
    if unknown := sorted(set(strengths) - set(names)):
        raise SepmeError(f"There is no delta of '{unknown[0]}': choose from {', '.join(names)}.")
    finite(**{f"strength of '{name}'": strength for name, strength in strengths.items()})
    refuse_contradictions(deltas, model.reads)
    scaled = [
        delta * strengths[name] if strengths.get(name, 1.0) != 1.0 else delta
        for name, delta in zip(names, deltas, strict=True)
    ]
    return reduce(add, scaled)


def _dense(delta: ConceptDelta, path: str) -> Tensor:
    return delta.up[path].double() @ delta.down[path].double()


def _rounded(delta: ConceptDelta, dtype: torch.dtype | None) -> ConceptDelta:
    if dtype is None:
        return delta
    down, up = ({p: t.to(dtype) for p, t in f.items()} for f in (delta.down, delta.up))
    if not all(tensor.isfinite().all() for tensor in (*down.values(), *up.values())):
        raise SepmeError(f"The delta is too large for {dtype}: give torch.bfloat16 or float32.")
    return ConceptDelta(down, up, delta.provenance)


def _distance(delta: ConceptDelta, other: ConceptDelta) -> float:
    """`||Delta - Delta'||_F / ||Delta||_F`."""
    if delta is other:
        return 0.0
    pairs = [(_dense(delta, path), _dense(other, path)) for path in delta.paths]
    off = sum(float((a - b).square().sum()) for a, b in pairs)
    return (off / max(sum(float(a.square().sum()) for a, _ in pairs), 1e-300)) ** 0.5


def _header(provenance: Provenance) -> dict[str, str]:
    return {"sepme_export": canonical_json(provenance.to_dict())}


def kohya_name(path: str, xl: bool) -> str:
    """kohya's name of a UNet's module; of Stable Diffusion XL they are made of original names."""
    return "lora_unet_" + (_ldm.unet_name(path, xl) if xl else path).replace(".", "_")


def _kohya_tensors(model: Backbone, delta: ConceptDelta) -> dict[str, Tensor]:
    tensors = {}
    for path in delta.paths:
        name = kohya_name(path, model.xl)
        tensors[f"{name}.lora_down.weight"] = delta.down[path]
        tensors[f"{name}.lora_up.weight"] = delta.up[path]
        tensors[f"{name}.alpha"] = torch.tensor(float(delta.rank))  # the scale is alpha / rank
    return tensors


def _kohya_header(model: Backbone) -> dict[str, str]:
    """What AUTOMATIC1111 tells 2.x and XL by; a file that says nothing counts as 1.x there."""
    v2 = model.d_in == 1024
    version = "sdxl_base_v1-0" if model.xl else f"sd_v{1 + v2}"
    version += "_v" if model.prediction_type == "v_prediction" else ""
    return {
        "ss_base_model_version": version,
        "ss_network_module": "networks.lora",
        "ss_v2": str(v2),
    }


def _ordered(content: bytes) -> bytes:
    """The same safetensors file with its header's keys in order: safetensors gives them in any."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = canonical_json(json.loads(content[8:end])).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def _refuse_unmergeable(model: Backbone, format: str) -> None:
    refuse_attached(model)
    if model.text_adapters:
        raise SepmeError(
            "The pipeline's text encoder carries an adapter, which a merged model would hide: take "
            "it off first."
        )
    if format == "folder":
        return
    shape = next((s for s in loading.SHAPES.values() if s.width == model.d_in), None)
    for name, asked in shape.parts.items() if shape else [("unet", {"cross_attention_dim": 0})]:
        config = getattr(model.pipe, name).config
        for key, value in asked.items():
            free = key == "sample_size" or key.endswith("_token_id")  # no weights depend on them
            if not free and _plain(found := getattr(config, key, None)) != _plain(value):
                raise SepmeError(
                    f"Only {loading.KINDS} have a layout of one file, and this {name} has {key} = "
                    f"{found}: export a folder."
                )
    if model.d_in != 1024 and model.prediction_type != "epsilon":
        raise SepmeError(
            "Who reads a file of 1.x or XL takes its UNet to predict noise, and this one predicts "
            f"{model.prediction_type}: export a folder."
        )


def _plain(value: object) -> object:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


@alone
def _write_merged(
    model: Backbone, delta: ConceptDelta, folder: Path, file: Path | None, dtype: torch.dtype | None
) -> None:
    """The pipeline with `W_l + B_l Q_l` in place of `W_l`, as a folder or as one file."""
    changes = {f"{path}.weight": _dense(delta, path) for path in delta.paths}
    header = _header(delta.provenance)
    with applied(model, DenseDelta(changes, delta.provenance)):
        if file is not None:
            state = {n: _as(t, dtype) for n, t in _ldm.checkpoint(model.pipe).items()}
            save_file(state, file, {"format": "pt", **header})
            return
        with loading.quiet():
            model.pipe.save_pretrained(folder, safe_serialization=True)
    for config in folder.rglob("*.json"):  # some say where the model lay on this machine
        if "_name_or_path" in (content := json.loads(config.read_text("utf-8"))):
            save_json(config, {k: v for k, v in content.items() if k != "_name_or_path"})
    for weights in folder.glob("*/*.safetensors") if dtype is not None else ():
        state = {n: _as(t, dtype) for n, t in load_file(weights).items()}
        save_file(state, weights, {"format": "pt"})
    sampling = {"guidance_scale": model.guidance, "num_inference_steps": model.steps}
    save_json(folder / "generation.json", sampling)


def _as(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


@contextmanager
def _whole(out: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder that takes the name `out` once it is whole; else nothing stays."""
    if os.path.lexists(out) and not (overwrite and out.is_dir()):
        how = "choose another" if overwrite else "choose another, or allow to overwrite it"
        raise SepmeError(f"'{out}' is there already: {how}.")
    out = Path(os.path.realpath(out))  # of a link, the folder that it names is replaced
    new = temporary(writable_folder(out.parent))
    old = new.with_suffix(".tmp-old")
    try:
        new.mkdir(parents=True)
        yield new
        if out.is_dir():
            _refuse_others(out, new)
            os.replace(out, old)
        os.replace(new, out)
    except (OSError, SafetensorError) as error:  # safetensors' own when a disk is full
        why = in_words(error) if isinstance(error, OSError) else error
        raise SepmeError(
            f"'{out}' cannot be written ({why}): choose a folder that you may write to."
        ) from error
    finally:
        if old.is_dir() and not out.exists():
            os.replace(old, out)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def _refuse_others(out: Path, new: Path) -> None:
    """Overwriting deletes the folder that was there, so it must hold nothing else."""
    for file in out.rglob("*"):
        if file.is_symlink() or not (new / file.relative_to(out)).exists():
            raise SepmeError(
                f"'{out}' holds '{file.relative_to(out)}', which this export would delete: choose "
                "another folder."
            )


# ------------------------------------------------------------------ the card
_LORA = (
    "In diffusers:\n\n```python\n"
    'pipe.load_lora_weights("FOLDER", weight_name="{file}", adapter_name="erased")\n```'
)
_HOW = {
    "peft": _LORA,
    "kohya": _LORA
    + "\n\nAUTOMATIC1111 and Forge: put `{file}` into `models/Lora` and write `<lora:{stem}:1>` "
    "into the prompt.\n\nComfyUI: put it into `models/loras` and use the node *Load LoRA*. The "
    "text encoder is not changed, so its strength does not matter.",
    "folder": "In diffusers:\n\n```python\n"
    'pipe = StableDiffusionPipeline.from_pretrained("FOLDER")\n```',
    "file": "In diffusers:\n\n```python\n"
    'pipe = StableDiffusionPipeline.from_single_file("FOLDER/{file}")\n```\n\n'
    "AUTOMATIC1111 and Forge: put `{file}` into `models/Stable-diffusion`. ComfyUI: into "
    "`models/checkpoints`, for the node *Load Checkpoint*. A 2.x model that predicts v needs the "
    "base model's `.yaml` beside the file in AUTOMATIC1111.",
}
_CARD = """---
{head}
---

# {base} without {concept}

This is {what}.

Erased: {forgotten}.

Kept: {kept}.

| | |
|---|---|
| base model | {base}, fingerprint `{fingerprint}` |
| relative error of what was written (Frobenius) | {error:.2g}{rank} |
| number type | {dtype} |
| seed | {seed} |
| versions | {versions} |

## How to load it

{how}

## Limits

- It was made for the base model of this fingerprint; what it does to another was not measured.
- {limit}
- Only prompts are covered: image prompts, inverted embeddings and paraphrases may still reach it.
- The base model's licence holds for this as well.

## Settings

```json
{settings}
```
"""
_MERGED = "Somebody determined can train the concept back."
_SWITCH = "It is a switch: without this file, or at strength 0, the base model knows all it knew."
_XL = "\n- XL's pooled text embedding reaches the UNet unchanged, and carries the concept too."


def _card(
    model: Backbone,
    provenance: Provenance,
    format: str,
    file: str,
    error: float,
    rank: int | None,
    dtype: torch.dtype | None,
) -> str:
    """The text of a README.md, with the hub's YAML head; words from outside are escaped."""
    merged = format in ("folder", "file")
    head = {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    head["tags"] = ["stable-diffusion", "concept-erasure", *([] if merged else ["lora"])]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model.name):  # a hub id
        head |= {"base_model": model.name}
        head |= {"base_model_relation": "finetune" if merged else "adapter"}
    how = _HOW[format].format(file=file, stem=file.removesuffix(".safetensors"))
    return _CARD.format(
        head="\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items()),
        base=in_markdown(model.name),
        concept=in_markdown(provenance.concept),
        what=FORMATS[format],
        forgotten=_listed(provenance.forgotten),
        kept=_listed(provenance.kept) or "nothing",
        fingerprint=model.fingerprint,
        error=error,
        rank="" if rank is None else f", rank {rank} at most",
        dtype=str(dtype or "as the original").removeprefix("torch."),
        seed=provenance.seed,
        versions=", ".join(f"{name} {v}" for name, v in versions().items()),
        how=how,
        limit=(_MERGED if merged else _SWITCH) + (_XL if model.xl else ""),
        # A backtick may end the block that it stands in; JSON has another spelling of it.
        settings=json.dumps(_short(provenance.settings), indent=1).replace("`", "\\u0060"),
    )


def _short(settings: JsonValue) -> JsonValue:
    """A sum's settings hold its terms' provenance; without the prompts, which stand above."""
    if isinstance(settings, Mapping):
        kept = settings.keys() - {"forgotten", "kept", "versions", "base"}
        return {key: _short(settings[key]) for key in sorted(kept)}
    return [_short(each) for each in settings] if isinstance(settings, list) else settings


def _listed(prompts: Sequence[str], most: int = 20) -> str:
    words = [in_code(prompt) if prompt.strip() else "the empty prompt" for prompt in prompts]
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" * (len(words) > most))


# ------------------------------------------------------------------ reading
def import_lora(
    model: Backbone,
    file: str | Path,
    concept: Concept,
    keep: Sequence[str] = (),
    *,
    extra: str = "refuse",
) -> ConceptDelta | DenseDelta:
    """The delta that a foreign LoRA file is: diffusers', PEFT's, kohya's or LECO's names.

    All layers of a ConceptDelta share one basis `Q` of the joint row space of the file's down
    factors, so `B_l = (alpha / r) up_l down_l Q^T` is exact.

    Args:
        concept, keep: what the file is said to forget and to keep; the file itself does not say.
        extra: layers other than `attn2.to_k` and `to_v` are a reason to "refuse" the file, are
            left out with a warning ("leave"), or make it a "dense" delta of the UNet.

    Raises:
        SepmeError: a pickle, a damaged file, names or shapes that the UNet lacks, extra layers, no
            change at all, or a prompt that is too long, or both forgotten and kept.
    """
    choose(EXTRA, extra=extra)
    file, keep = Path(file), texts(keep)
    model.refuse_unclear((concept, keep))
    taken, others = _taken(model, file, extra)
    settings = {"imported": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    settings |= {"left_out": others} if others and extra == "leave" else {}
    provenance = Provenance(
        concept.name,
        concept.kind,
        model.fingerprint,
        model.name,
        concept.prompts,
        tuple(keep),
        settings,
        versions=versions(),
    )
    if others and extra == "dense":
        changes = {f"{p}.weight": _weight_change(model, p, *f) for p, f in taken.items()}
        return DenseDelta(changes, provenance)
    if others:
        warn(f"'{file.name}': {len(others)} layers are left out, like '{others[0]}'.")
    q = _joint_basis([down for down, _ in taken.values()])
    up = {path: (up @ (down @ q.mT)).float() for path, (down, up) in taken.items()}
    return ConceptDelta(dict.fromkeys(taken, q.float()), up, provenance)


def _taken(
    model: Backbone, file: Path, extra: str
) -> tuple[dict[str, tuple[Tensor, Tensor]], list[str]]:
    """The factors `(down, up)` of the layers that the delta gets, by path, and the other layers.

    Raises:
        SepmeError: see `import_lora`.
    """
    layers, foreign = _layers_of(model, *_read(file), file)
    text = model.projections()
    own = {path: factors for path, factors in layers.items() if path in text}
    others = sorted([*(layers.keys() - own.keys()), *foreign])
    if others and (extra == "refuse" or (extra == "dense" and foreign)):
        first = (sorted(foreign) or others)[0]
        raise SepmeError(
            f"'{file.name}' changes {len(others)} layers besides the text's keys and values, like "
            f"'{first}': leave them out (--leave, extra='leave')"
            + ("." if foreign else " or take all of them (extra='dense').")
        )
    taken = layers if extra == "dense" else own
    if not taken:
        raise SepmeError(f"'{file.name}' changes no 'attn2.to_k' or 'to_v': give another file.")
    if not any(down.any() and up.any() for down, up in taken.values()):
        raise SepmeError(f"All factors in '{file.name}', or their scale, are zero: give another.")
    return taken, others


def _read(file: Path) -> tuple[dict[str, Tensor], float | None]:
    """The tensors of a LoRA file, and the alpha that is given for all layers."""
    if file.suffix != ".safetensors" and file.exists():
        raise SepmeError(
            f"'{file}' is no .safetensors file, and others may run code: give a .safetensors file."
        )
    check_whole(file)
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata() or {}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    of_peft = any(name.startswith("base_model.") for name in tensors)
    try:
        if of_peft:
            config = json.loads(read_text(file.with_name("adapter_config.json")))
            said = {f"unet.{key}": value for key, value in config.items()}
            alpha = float(said["unet.lora_alpha"])
        else:
            said = json.loads(header.get("lora_adapter_metadata") or "{}")  # diffusers' key
            alpha = said.get("unet.lora_alpha")
            alpha = None if alpha is None else float(alpha)
        odd = [k for k in ("alpha_pattern", "use_rslora", "use_dora") if said.get(f"unet.{k}")]
    except OSError as error:
        raise SepmeError(
            f"'{file}' is as PEFT saves it, with its scale in an adapter_config.json "
            f"({in_words(error)}): put that beside it."
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SepmeError(f"'{file}' is not a whole LoRA file: copy or make it again.") from error
    if odd:
        raise SepmeError(f"'{file}' uses {odd[0]}, which sepme does not read: save it without.")
    return tensors, alpha


def _layers_of(
    model: Backbone, tensors: Mapping[str, Tensor], alpha: float | None, file: Path
) -> tuple[dict[str, tuple[Tensor, Tensor]], list[str]]:
    """Module path -> (down, alpha / r * up) in float64, and the names of what the UNet lacks."""
    modules = {
        path.removesuffix(".base_layer"): module
        for path, module in model.unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and "lora_" not in path
    }
    known = {kohya_name(path, xl): path for path in modules for xl in (True, False)}
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if not (part := _PART.fullmatch(name)):
            raise SepmeError(
                f"'{file}' holds {name!r}, and only a plain LoRA can be read, whose layers are "
                "products of two matrices (not so DoRA, LoHa, LoKr and LoCon): give another."
            )
        module = part["module"].replace(".processor", "")
        which = _FACTORS.get(part["factor"], part["factor"]) or "alpha"
        parts = found.setdefault(module, {})
        if which in parts or not (which == "alpha" or tensor.is_floating_point()):
            why = "a second time" if which in parts else "as whole numbers"
            raise SepmeError(f"'{file}' holds the {which} of '{module}' {why}: make it again.")
        parts[which] = tensor.double()
    layers, foreign = {}, []
    for module, parts in found.items():
        if (path := known.get(f"lora_unet_{module.replace('.', '_')}")) is None:
            foreign.append(module)
        else:
            layers[path] = _factors(path, modules[path].weight, parts, alpha, file)
    return layers, foreign


def _factors(
    path: str, weight: Tensor, parts: Mapping[str, Tensor], alpha: float | None, file: Path
) -> tuple[Tensor, Tensor]:
    """`down [r, d_in ...]` and `alpha / r * up [d_out, r]` of one layer."""
    down, up = parts.get("down"), parts.get("up")
    whole = down is not None and up is not None and down.ndim == up.ndim == weight.ndim
    fits = whole and (len(up), *down.shape[1:]) == weight.shape
    if not fits or not up[0].numel() == len(down) > 0:
        raise SepmeError(
            f"The factors of '{path}' in '{file}' do not fit this model's {list(weight.shape)}: "
            "give a LoRA that was made for it."
        )
    scale = parts.get("alpha", torch.tensor(alpha if alpha is not None else float(len(down))))
    if scale.numel() != 1:
        raise SepmeError(f"The alpha of '{path}' in '{file}' is no number: make the file again.")
    up = up.flatten(1) * (float(scale) / len(down))
    if not (up.isfinite().all() and down.isfinite().all()):
        raise SepmeError(f"'{file}' is not finite in '{path}': make the file again.")
    return down, up


def _weight_change(model: Backbone, path: str, down: Tensor, up: Tensor) -> Tensor:
    weight = model.unet.get_submodule(path).weight
    return (up @ down.flatten(1)).reshape(weight.shape).float()


def _joint_basis(downs: Sequence[Tensor]) -> Tensor:
    """Orthonormal rows `Q [q, d_in]` that span the rows of all the factors."""
    rows = [row_basis(down) for down in downs if down.any()]  # of whatever size each of them is
    together = torch.cat(rows)
    return row_basis(together, max(together.shape) * torch.finfo(torch.float32).eps)  # Q's type
