"""Convert a published file of weights to safetensors, which loads fast and is safe; PyTorch is not needed.

python -m experiments.convert --from=edm --in=models/edm-cifar10-32x32-uncond-vp.pkl

A missing official file is downloaded first; `ld3_jax.pretrained.download` has the names.
"""

from pathlib import Path

from absl import flags

from experiments import command
from ld3_jax.disk import check_writable
from ld3_jax.networks import files
from ld3_jax.pretrained import download

_FROM = flags.DEFINE_enum("from", "auto", ["auto", "edm", "torch", "safetensors"], "What the file must be.")
_IN = command.path_flag("in", None, "The file to read: EDM's .pkl, torch's .ckpt, .pt or .bin, a .zip with one.")
_OUT = command.path_flag("out", None, "The file to write; by default next to the input, as .safetensors.")
flags.mark_flags_as_required(["in"])


def main() -> None:
    source = _fetch(Path(_IN.value))
    out = Path(_OUT.value) if _OUT.value else source.with_suffix(".safetensors")
    if out.resolve() == source.resolve():
        raise ValueError(f"{source} is safetensors; give another --out to write it anew")
    check_writable(out)
    digest = files.sha256(source)
    if source.name in download.SOURCES and digest != (download.SOURCES[source.name].sha256 or digest):
        raise ValueError(f"{source} is not the official file: its SHA-256 is {digest}")
    checkpoint = files.read(source)
    checkpoint = checkpoint._replace(state=dict(checkpoint.state))  # it is written and counted
    if _FROM.value not in ("auto", checkpoint.kind):
        raise ValueError(f"{source} is of kind {checkpoint.kind!r}, not {_FROM.value!r}")
    if out.exists() and not _OUT.value:
        raise ValueError(f"{out} is there already; name it with --out to have it written anew")
    files.write(out, checkpoint, {"source": source.name, "sha256": digest})
    numbers = sum(array.size for array in checkpoint.state.values())
    print(f"{out}: {len(checkpoint.state)} arrays, {numbers:,} numbers, {out.stat().st_size / 1e6:.1f} MB")


def _fetch(path: Path) -> Path:
    if path.is_file() or path.name not in download.SOURCES:
        return download.fetch(path)
    with command.progress(f"{path.name} %", 100) as update:
        return download.fetch(path, lambda name, done, total: update(100 * done // total))


if __name__ == "__main__":
    command.run(main)
