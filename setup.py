"""Packaging. Tools (ruff, mypy, pytest) are configured in pyproject.toml; verified versions are in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
KERNELS = "kernels"

# NVIDIA's apex is optional and built from its source: the PyPI package named `apex` is an unrelated web toolkit.
REQUIRES = [
    "torch>=2.10",
    "deepspeed>=0.19.8",
    "megatron-core>=0.16.1,<0.17; python_version < '3.12'",
    "megatron-core>=0.16.1; python_version >= '3.12'",
    "sentencepiece>=0.2",
    "pydantic>=2",
    "numpy<2.4",
    "rich",
    "jinja2",
    "matplotlib",
    "scikit-learn",
    "scipy",
    "safetensors",
    "xxhash>=3",
    "filelock",
    "psutil",
    "ninja",
]
EXTRAS = {
    "parquet": ["pyarrow"],
    "zstd": ["zstandard"],
    "hf": ["transformers>=5", "tokenizers", "protobuf"],  # the last for tokenizers in SentencePiece files (DeBERTa-v3)
    "gpu": ["triton>=3.6; sys_platform == 'linux'"],
    "dev": [
        "accelerate",
        "hypothesis",
        "import-linter",
        "mypy",
        "pre-commit",
        "pytest",
        "pytest-timeout",
        "ruff",
        "scikit-learn",
        "scipy",
    ],
}


def version() -> str:
    text = (ROOT / "fast_electra" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
    assert match, 'fast_electra/__init__.py must hold a line __version__ = "..."'
    return match.group(1)


def long_description() -> str:
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


setup(
    name="fast_electra",
    version=version(),
    description="Language model pre-training by replaced-token detection with a frozen auxiliary model, on DeepSpeed",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # `kernels/` itself is no package: a top-level package of that name collides with the one on PyPI.
    packages=[*find_packages(include=["fast_electra", "fast_electra.*"]), *find_packages(KERNELS)],
    package_dir={"fast_electra": "fast_electra", "fast_electra_kernels": f"{KERNELS}/fast_electra_kernels"},
    package_data={
        "fast_electra.calibration": ["reference.json"],
        "fast_electra.export": ["README.md.j2"],
        "fast_electra.text": ["sample/*"],
        "fast_electra.report": ["page.html.j2"],
    },
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["fast-electra = fast_electra.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
