"""Patch files, altered by accident, so that the checksum does not fit, or made on purpose, so that it does.

Each goes through `Patch.load`, `Patch.apply` and `factpatch show`; what loads although it was made also through
everything else that a patch can do. No file that was altered may load, and no error may change the model.
"""

from __future__ import annotations

import copy
import io
import itertools
import json
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from tests.editors import FACTS, make
from tests.hostile.common import Place, Tally, one, places, steering
from tests.models import CONFIGS, tiny_model

from factpatch.cli import render, show
from factpatch.export.card import model_card
from factpatch.patch.file import PatchFileError, write_patch_file
from factpatch.patch.patch import Patch

Document = dict[str, Any]
Tensors = dict[str, torch.Tensor]
Made = Iterator[tuple[str, str, Callable[[Path], object]]]
"""Group, what it is, and what writes it."""

DTYPES = (
    "F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "U16", "U32", "U64", "BOOL", "F8_E4M3", "F8_E5M2",
    "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2", "C64", "C128", "X", "", "f32",
)  # fmt: skip
TORCH_DTYPES = (
    "float16", "bfloat16", "float64", "int8", "int32", "int64", "uint8", "bool", "complex64", "quint8", "qint8",
    "bits8",
    "float8_e4m3fn", "float8_e8m0fnu", "float4_e2m1fn_x2", "uint16", "uint1", "int4", "nn", "load", "__name__", "float",
)  # fmt: skip
ODD = (
    None, True, 0, -1, 1, 2**70, 1.5, float("nan"), float("inf"), "", " ", "x", "float32", "\x1b[31mred\x1b[0m", "\x00",
    "\ud800", "\u202eevil", [], [[]], {}, {"a": {}}, [1, 2], ["x"], {"1": "x"}, {"class": 5}, "a" * 100_000,
)  # fmt: skip


@dataclass
class Bench:
    """Patches of each form, and the model that they fit."""

    place: Place
    originals: dict[str, Path]
    model: Any
    weights: Tensors

    def changed(self) -> bool:
        """Whether the model has changed; it is then restored."""
        now = self.model.state_dict()
        same = all(torch.equal(_bytes(now[name]), _bytes(weight)) for name, weight in self.weights.items())
        if not same:
            self.model.load_state_dict(self.weights)
        return not same

    def try_one(self, tally: Tally, group: str, what: str, path: Path, intact: bytes | None = None) -> None:
        """Use a file.

        Args:
            intact: What it was before it was altered; None if it was made.
        """
        same = intact is not None and path.stat().st_size < 50_000_000 and path.read_bytes() == intact
        names = (str(path),)

        def loads(_: Patch) -> str | None:
            return "an altered file" if intact is not None and not same else None

        patch = one(tally, f"{group}: load", what, lambda: Patch.load(path), (PatchFileError,), names, loads)
        one(tally, f"{group}: show", what, lambda: _shown(path), (ValueError,), (), _steers)
        if patch is None:
            return
        refusals = (ValueError, FloatingPointError)
        done = one(tally, f"{group}: apply", what, lambda: patch.apply(self.model) or True, refusals, (), self._finite)
        if self.changed() and not done:
            tally.add(f"{group}: apply", "defect", "model changed after an error", what)
        if intact is None:
            self._everything_else(tally, what, patch)

    def _finite(self, _: object) -> str | None:
        finite = all(bool(weight.isfinite().all()) for weight in self.model.state_dict().values())
        return None if finite else "a model that is not finite"

    def _everything_else(self, tally: Tally, what: str, patch: Patch) -> None:
        uses: dict[str, Callable[[], object]] = {
            "remove": lambda: patch.remove(self.model),
            "read": lambda: (patch.facts, patch.chat, patch.layers, patch.num_bytes, patch.states(), repr(patch)),
            "compose": lambda: Patch.compose([patch]),
            "shrink": lambda: patch.shrink(rank=1),
            "card": lambda: model_card(patch),
            "rebase": lambda: patch.rebase(self.model),
            "save": lambda: patch.save(self.place.work / "patches" / "again.safetensors"),
        }
        for name, use in uses.items():
            one(tally, f"made: {name}", what, use, (ValueError, FloatingPointError))
        self.changed()


@contextmanager
def bench(place: Place) -> Iterator[Bench]:
    folder = place.folder("patches")
    originals = {}
    for name, method, dtype in (
        ("float32", "memit-blue", torch.float32),
        ("exact", "memit-blue", torch.float64),
        ("masked", "rect-blue", torch.float32),
    ):
        editor = make(method, dtype=dtype)
        editor.edit(FACTS[:2])
        if name != "masked":
            editor.edit(FACTS[2:])
        originals[name] = folder / f"{name}.safetensors"
        editor.patch.save(originals[name])
    model = tiny_model("llama", dtype=torch.float32)
    yield Bench(place, originals, model, {name: weight.clone() for name, weight in model.state_dict().items()})


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8) if tensor.dim() else tensor


def _shown(path: Path) -> str:
    kept, text = render.screen, io.StringIO()
    render.screen = Console(file=text, highlight=False, width=120)
    try:
        show.show(path)
    finally:
        render.screen = kept
    return text.getvalue()


def _steers(text: str) -> str | None:
    return f"show lets {', '.join(steering(text)[:3])} through" if steering(text) else None


# --- by accident


def accidents(bench: Bench, tally: Tally) -> None:
    """Bits, bytes and entries of the header, altered without a new checksum."""
    case = bench.place.work / "patches" / "case.safetensors"
    for name, path in bench.originals.items():
        intact = path.read_bytes()
        chance = random.Random(bench.place.seed)
        flips = list(_flips(intact, chance, bench.place.many(900)))
        for group, what, content in [*flips, *bench.place.some(_altered_files(intact, chance))]:
            case.write_bytes(content)
            bench.try_one(tally, group, f"{name}: {what}", case, intact)


def _flips(intact: bytes, chance: random.Random, count: int) -> Iterator[tuple[str, str, bytes]]:
    header = 8 + struct.unpack("<Q", intact[:8])[0]
    for _ in range(count):
        end = header if chance.random() < 0.5 else len(intact)
        at, bit = chance.randrange(end), chance.randrange(8)
        content = bytearray(intact)
        content[at] ^= 1 << bit
        yield "bit flips", f"bit {bit} of byte {at}", bytes(content)


def _altered_files(intact: bytes, chance: random.Random) -> Iterator[tuple[str, str, bytes]]:
    length = struct.unpack("<Q", intact[:8])[0]
    header, body = intact[8 : 8 + length], intact[8 + length :]
    text = header.decode()
    ends = [8 + at for at, character in enumerate(text) if character in '{}[],:"' and chance.random() < 0.08]
    for at in sorted({*range(17), *ends, 8 + length - 1, 8 + length, 8 + length + 1, len(intact) - 1}):
        yield "truncated", f"first {at} bytes", intact[:at]
        if at > 8:
            yield (
                "truncated",
                f"header of {at - 8} bytes with its length",
                struct.pack("<Q", at - 8) + intact[8:at] + body,
            )
    for extra in (b"\0", b"x" * 100, intact):
        yield "longer", f"{len(extra)} bytes more", intact + extra
    for size in (0, 1, length - 1, length + 1, len(intact), 10**8, 10**8 + 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1):
        yield "header length", f"length {size}", struct.pack("<Q", size) + header + body
    entries = json.loads(text)
    yield from _altered_tensors(entries, text, body)
    yield from _altered_metadata(entries, text, body, chance)


def _altered_tensors(entries: Document, text: str, body: bytes) -> Iterator[tuple[str, str, bytes]]:
    names = [name for name in entries if name != "__metadata__"]
    for a, b in itertools.combinations(names, 2):
        yield "tensors swapped", f"{a} and {b}", _file({**entries, a: entries[b], b: entries[a]}, body)
    for name in names:
        entry, shape = entries[name], entries[name]["shape"]
        for dtype in DTYPES:
            if dtype != entry["dtype"]:
                yield "dtype", f"{name} as {dtype}", _file({**entries, name: {**entry, "dtype": dtype}}, body)
        shapes: tuple[Any, ...] = (
            shape[::-1], [*shape, 1], [1, *shape], [], [0, 0], [-1, 5], [2**62, 2**62], [2**64], ["a"], None, 5,
            [1.5, 2],
        )  # fmt: skip
        for other in shapes:
            if other != shape:
                yield "shape", f"{name} as {other}", _file({**entries, name: {**entry, "shape": other}}, body)
        for offsets in ([0, 0], [0], [5, 2], [-1, 4], [0, 2**63], None, "a", [0, len(body)], [1, 2]):
            yield "offsets", f"{name} at {offsets}", _file({**entries, name: {**entry, "data_offsets": offsets}}, body)
        yield "names", f"{name} left out", _file({n: e for n, e in entries.items() if n != name}, body)
        for other in (
            "",
            "x",
            "0.1",
            "0.1.2.3",
            "a.b.up",
            "-1.1.up",
            f"{name}\x00",
            "9.9.up",
            "٣.1.up",
            "9" * 5000 + ".1.up",
        ):
            renamed = {(other if n == name else n): entry for n, entry in entries.items()}
            yield "names", f"{name} called {other[:20]!r}", _file(renamed, body)
        again = json.dumps({name: entry})[1:-1]
        yield "names", f"{name} twice", _raw(text.rstrip()[:-1] + "," + again + "}", body)


def _altered_metadata(
    entries: Document, text: str, body: bytes, chance: random.Random
) -> Iterator[tuple[str, str, bytes]]:
    meta = entries["__metadata__"]
    described = json.loads(meta["factpatch"])
    again = ',"__metadata__":' + json.dumps(meta) + "}"
    yield "names", "metadata twice", _raw(text.rstrip()[:-1] + again, body)
    for _ in range(300):
        altered, what = _altered(described, chance)
        yield "description", what, _file({**entries, "__metadata__": {"factpatch": json.dumps(altered)}}, body)
    for value in (
        "", "{}", "[]", "null", "1", '"a"', "{", "NaN", "[" * 100_000, '{"format":' * 50_000, '{"format": 3}',
        '{"format": "3"}', '{"format": null}', '{"format": NaN}', '{"format": ' + "9" * 5000 + "}",
        '{"format": 3, "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
    ):  # fmt: skip
        what = f"description {value[:30]!r} ({len(value)} characters)"
        yield "description", what, _file({**entries, "__metadata__": {"factpatch": value}}, body)
    others: tuple[Any, ...] = (
        {}, {"sha256": "0" * 64}, {**meta, "more": "x"}, {**meta, "sha256": "0" * 64}, None, [], "a", {"factpatch": 5},
        {"factpatch": meta["factpatch"] + " "},
    )  # fmt: skip
    for other in others:
        yield "metadata", f"metadata {str(other)[:40]}", _file({**entries, "__metadata__": other}, body)
    for spaced in (json.dumps(entries), json.dumps(entries, indent=1), text + " " * 8, " " + text):
        yield "metadata", f"header written otherwise ({len(spaced)} characters)", _raw(spaced, body)
    yield "metadata", "header in latin-1", struct.pack("<Q", 8) + b'{"\xe9":1}' + body


def _file(entries: Any, body: bytes) -> bytes:
    return _raw(json.dumps(entries, separators=(",", ":")), body)


def _raw(text: str, body: bytes) -> bytes:
    header = text.encode("utf-8", "surrogatepass")
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + body


def _altered(document: Any, chance: random.Random) -> tuple[Any, str]:
    """A copy with something else at one place."""
    made = copy.deepcopy(document)
    *path, last = chance.choice([path for path in places(made) if path])
    holder = made
    for name in path:
        holder = holder[name]
    where, kind = ".".join(map(str, (*path, last))), chance.choice(("odd", "odd", "odd", "drop", "rename", "double"))
    if kind == "drop":
        del holder[last]
        return made, f"{where} left out"
    if kind == "rename" and isinstance(holder, dict):
        other = chance.choice(("x", "", "\x00", "1", "-1", "1_0", " 1", "é", f"{last} "))
        holder[other] = holder.pop(last)
        return made, f"{where} called {other!r}"
    if kind == "double" and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[last]))
        return made, f"{where} twice"
    holder[last] = copy.deepcopy(chance.choice(ODD))
    return made, f"{where} = {str(holder[last])[:30]!r}"


# --- on purpose


def _parts(path: Path) -> tuple[Document, Tensors]:
    """The document and the tensors of a patch file, without any check."""
    with safe_open(path, framework="numpy") as file:
        document = json.loads(file.metadata()["factpatch"])
    del document["format"], document["sha256"]
    return document, load_file(path)


def _written(document: Document, tensors: Tensors) -> Callable[[Path], object]:
    own = {name: tensor.clone() for name, tensor in tensors.items()}  # some may be one tensor under two names
    return lambda path: write_patch_file(path, document, own)


def _try_made(bench: Bench, tally: Tally, made: Made) -> None:
    case = bench.place.work / "patches" / "made.safetensors"
    for group, what, write in bench.place.some(made):
        case.unlink(missing_ok=True)
        write(case)
        bench.try_one(tally, group, what, case)


def documents(bench: Bench, tally: Tally) -> None:
    """Descriptions with other fields, whose checksum fits."""
    document, tensors = _parts(bench.originals["float32"])
    _try_made(bench, tally, _documents(document, tensors, random.Random(bench.place.seed)))
    _try_made(bench, tally, _configs(document, tensors))


def _documents(document: Document, tensors: Tensors, chance: random.Random) -> Made:
    for name in document:
        for value in ODD:
            yield "made fields", f"{name} = {str(value)[:30]!r}", _written({**document, name: value}, tensors)
        yield "made fields", f"{name} left out", _written({n: v for n, v in document.items() if n != name}, tensors)
    for index, name, value in itertools.product((0, 1), ("facts", "before", "after", "edits", "conditioned"), ODD):
        made = copy.deepcopy(document)
        made["batches"][index][name] = value
        yield "made fields", f"batches.{index}.{name} = {str(value)[:30]!r}", _written(made, tensors)
    for _ in range(700):
        altered, what = _altered(document, chance)
        yield "made fields", what, _written(altered, tensors)
    for field, name in itertools.product(("weight_dtype", "written_dtype"), TORCH_DTYPES):
        yield "made dtypes", f"{field} = {name}", _written({**document, field: name}, tensors)
    deep: Any = []
    for _ in range(90):
        deep = [deep]
    many = copy.deepcopy(document)
    many["batches"][0]["edits"] = [0] * 1_000_000 + many["batches"][0]["edits"]
    for what, value in (
        ("composed = 5", {"composed": 5}), ("composed = [5]", {"composed": [5]}), ("90 lists deep", {"x": deep}),
        ("a million settings", {str(number): number for number in range(1_000_000)}),
    ):  # fmt: skip
        yield "made fields", f"settings: {what}", _written({**document, "settings": value}, tensors)
    yield "made fields", "a million edits of no facts", _written(many, tensors)


def _configs(document: Document, tensors: Tensors) -> Made:
    for family in CONFIGS:
        config = json.loads(json.dumps(tiny_model(family).config.to_dict()))
        yield "made configs", f"config of {family}", _written({**document, "config": config}, tensors)
        for key in ("hidden_size", "n_embd", "num_hidden_layers", "model_type", "intermediate_size"):
            for value in ODD[:14]:
                changed = {**document, "config": {**config, key: value}}
                yield "made configs", f"{family} with {key} = {str(value)[:20]!r}", _written(changed, tensors)


def shifts(bench: Bench, tally: Tally) -> None:
    """Shifts of other shapes, dtypes, forms and layers, whose checksum fits."""
    document, tensors = _parts(bench.originals["float32"])
    _try_made(bench, tally, _factors(document, tensors))
    _try_made(bench, tally, _forms(document, tensors))
    _try_made(bench, tally, _layers(document, tensors))
    its, parts = _parts(bench.originals["masked"])
    changes: Made = (
        ("made forms", f"masked: {name} {what}", _written(its, {**parts, name: other}))
        for name, tensor in parts.items()
        for what, other in {"short": tensor[:1], "float64": tensor.double(), "empty": tensor[:0]}.items()
    )
    _try_made(bench, tally, changes)


def _factors(document: Document, tensors: Tensors) -> Made:
    for name, tensor in tensors.items():
        up = name.endswith("up")
        others = {
            "not a number": torch.full_like(tensor, float("nan")), "infinite": torch.full_like(tensor, float("inf")),
            "1e38": torch.full_like(tensor, 1e38), "subnormal": torch.full_like(tensor, 1e-45),
            "1-d": tensor.reshape(-1), "0-d": torch.tensor(1.0), "3-d": tensor[None], "empty": torch.zeros(0, 0),
            "transposed": tensor.T.contiguous(), "rank 0": tensor[:, :0] if up else tensor[:0],
            "one rank more": torch.cat([tensor, tensor[:, :1]], 1) if up else torch.cat([tensor, tensor[:1]]),
            "one row less": tensor[1:], "one column less": tensor[:, 1:].contiguous(),
            **{str(dtype): tensor.to(dtype) for dtype in (torch.int64, torch.float16, torch.bfloat16, torch.float64)},
        }  # fmt: skip
        for what, other in others.items():
            yield "made factors", f"{name}: {what}", _written(document, {**tensors, name: other.contiguous()})
        yield "made factors", f"{name} missing", _written(document, {n: t for n, t in tensors.items() if n != name})


def _forms(document: Document, tensors: Tensors) -> Made:
    first = next(iter(tensors)).rpartition(".")[0]
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{first}.")}
    up, down = tensors[f"{first}.up"], tensors[f"{first}.down"]
    rows, columns = up.shape[0], down.shape[1]
    kept = torch.zeros((rows * columns + 7) // 8, dtype=torch.uint8)
    kept[0] = 255
    sparse = {"values": torch.ones(8), "kept": kept, "size": torch.tensor([rows, columns])}
    full = up @ down
    forms: dict[str, Tensors] = {
        "full": {"full": full}, "full, 1-d": {"full": full.reshape(-1)}, "full, 3-d": {"full": full[..., None]},
        "full, int64": {"full": torch.ones(rows, columns, dtype=torch.int64)},
        "outer product of large vectors": {"up": torch.ones(60_000, 1), "down": torch.ones(1, 60_000)},
        "masked": {"up": up, "down": down, "kept": kept}, "masked, short": {"up": up, "down": down, "kept": kept[:1]},
        "masked, float bits": {"up": up, "down": down, "kept": kept.float()},
        "masked, ranks differ": {"up": up, "down": down[:1], "kept": kept},
        "sparse": sparse,
    }  # fmt: skip
    for what, values in {
        "7 values": torch.ones(7), "9 values": torch.ones(9), "none": torch.ones(0), "2-d": torch.ones(8, 1),
        "not a number": torch.full((8,), float("nan")),
    }.items():  # fmt: skip
        forms[f"sparse, values: {what}"] = {**sparse, "values": values}
    for what, bits in {
        "float": kept.float(), "int64": kept.long(), "2-d": kept[None], "short": kept[:3], "empty": kept[:0],
        "long": torch.cat([kept, kept]),
    }.items():  # fmt: skip
        forms[f"sparse, bits: {what}"] = {**sparse, "kept": bits}
    for size in (
        [2**31, 2**31], [2**62, 2**62], [30_000, 30_000], [-1, -1], [1.0, 2.0], [float("nan"), 1.0],
        [float("inf"), 1.0], [rows], [rows, columns, 5], rows,
    ):  # fmt: skip
        forms[f"sparse, size {size}"] = {**sparse, "size": torch.tensor(size)}
    for what, parts in forms.items():
        shift = {f"{first}.{part}": tensor.contiguous() for part, tensor in parts.items()}
        yield "made forms", what, _written(document, {**rest, **shift})


def _layers(document: Document, tensors: Tensors) -> Made:
    index, old, _ = next(iter(tensors)).split(".")
    for layer in ("-1", "4", "99", "2147483648", str(2**64), "٣", "1_0", " 1", "01", "+1", "1.0", "", "x", "9" * 4000):
        made = copy.deepcopy(document)
        for batch, field in itertools.product(made["batches"], ("before", "after")):
            if old in batch[field]:
                batch[field][layer] = batch[field].pop(old)
        renamed = {_renamed(name, old, layer): tensor for name, tensor in tensors.items()}
        yield "made layers", f"layer {old} called {layer[:20]!r}", _written(made, renamed)
        yield "made layers", f"layer {old} called {layer[:20]!r} in the description alone", _written(made, tensors)
    twice = {f"{index}.0{old}.{part}": tensors[f"{index}.{old}.{part}"] * 2 for part in ("up", "down")}
    yield "made layers", "one layer under two names", _written(document, {**tensors, **twice})


def _renamed(name: str, old: str, layer: str) -> str:
    index, its, part = name.split(".")
    return f"{index}.{layer if its == old else its}.{part}"


def headers(bench: Bench, tally: Tally) -> None:
    """Headers that ask for much time or memory."""
    document, tensors = _parts(bench.originals["float32"])
    count = int(1_000_000 * min(1.0, bench.place.scale)) or 1000
    text = json.dumps({"sha256": "0" * 64, "format": 3, **document})
    empty = {f"{number}.0.up": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(count)}
    fields = {str(number): "" for number in range(count)}
    deep = '{"sha256": "' + "0" * 64 + '", "format": 3, "x": ' + "[" * 100_000 + "]" * 100_000 + "}"
    more = {**tensors, **{f"{number}.0.full": torch.zeros(0) for number in range(2, count // 4)}}
    case = bench.place.work / "patches" / "header.safetensors"
    for what, write in {
        f"{count} tensors of no size": _content({"__metadata__": {"factpatch": text}, **empty}),
        f"{count} fields of metadata": _content({"__metadata__": {"factpatch": text, **fields}}),
        f"{count // 4} empty shifts": _written(document, more),
        "a description 100,000 lists deep": _content({"__metadata__": {"factpatch": deep}}),
    }.items():
        write(case)
        bench.try_one(tally, "made headers", what, case)
    case.unlink()


def _content(entries: Document) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(_file(entries, b""))
