"""Packaging of omnijet: everything it says stands in settings.ini."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
settings = config["DEFAULT"]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    license="MIT",
    classifiers=["Development Status :: 3 - Alpha", "Intended Audience :: Science/Research", "Topic :: Scientific/Engineering :: Physics",
                 *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13))],
    keywords=settings["keywords"],
    python_requires=">=" + settings["min_python"],
    install_requires=settings["requirements"].split(),
    extras_require={
        "dev": settings["dev_requirements"].split(),
        "docs": settings["docs_requirements"].split(),
        "vqtorch": ["vqtorch @ git+https://github.com/minyoungg/vqtorch"],
    },
    # the chapters and the sample of jets travel with the package: `omnijet run` and `sample_jets()` need them
    packages=["omnijet", "omnijet.chapters", "omnijet.sample"],
    package_dir={"omnijet": "omnijet", "omnijet.chapters": "nbs", "omnijet.sample": "data"},
    package_data={
        "omnijet": ["*.js", "*.css", "pretrained/*", "pretrained/*/*"],
        "omnijet.chapters": ["*.ipynb", "presets/*.yaml"],
        "omnijet.sample": ["*.parquet", "README.md"],
    },
    entry_points={"console_scripts": settings["console_scripts"].split()},
)
