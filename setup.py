"""The package list: `configs/`, `data/` and `launch/` live at the top of the repository and ship
inside `mgen`."""

from setuptools import find_namespace_packages, find_packages, setup

SHIPPED = ("configs", "data", "launch")

packages = find_packages(include=["mgen", "mgen.*"])
package_dir = {"mgen": "mgen"}
for root in SHIPPED:
    package_dir[f"mgen.{root}"] = root
    packages += [f"mgen.{root}"]
    packages += [f"mgen.{root}.{name}" for name in find_namespace_packages(root)]

setup(packages=packages, package_dir=package_dir)
