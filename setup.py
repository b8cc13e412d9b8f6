"The package's metadata, all of it read from settings.ini."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_namespace_packages, find_packages, setup

HERE = Path(__file__).parent
ini = ConfigParser(delimiters=["="], interpolation=None)
ini.read(HERE/"settings.ini", encoding="utf-8")
settings = ini["DEFAULT"]
lib = settings["lib_path"]

def lines(key): return settings[key].strip().splitlines()

# configs/ stands at the top of the repository, and inside the package of a wheel; config_dir() finds it in both places.
configs = [f"{lib}.configs", *(f"{lib}.configs.{name}" for name in find_namespace_packages(HERE/"configs"))]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(HERE/"README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression=settings["license"],
    author=settings["author"],
    keywords=settings["keywords"].split(),
    classifiers=lines("classifiers"),
    python_requires=f">={settings['min_python']}",
    install_requires=lines("requirements"),
    extras_require={key.removesuffix("_requirements"): lines(key) for key in settings if key.endswith("_requirements")},
    packages=[*find_packages(include=[lib, f"{lib}.*"]), *configs],
    package_dir={f"{lib}.configs": "configs"},
    package_data={"": ["*.yaml", "static/*", "py.typed"]},
    entry_points={"nbdev": [f"{lib}={lib}._modidx:d"], "console_scripts": lines("console_scripts")},
)
