"""What a wheel carries beside the package, from where the repository has it; all else is in pyproject.toml."""

from setuptools import find_packages, setup

CARRIED = {"acertlab._shipped.notebooks": "notebooks", "acertlab._shipped.data.results": "data/results"}
CARRIED |= {"acertlab._shipped.data.fronts": "data/fronts"}
LARGE = [f"{name}-acert/weights.safetensors" for name in ("mnist", "cifar10")]  # a clone has them, a wheel stays small
EXCLUDED = {"acertlab._shipped.data.fronts": LARGE}
setup(packages=[*find_packages(include=["acertlab*"]), *CARRIED], package_dir=CARRIED, exclude_package_data=EXCLUDED)
