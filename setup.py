"""Finds the packages; everything else about the project is in pyproject.toml."""

from setuptools import find_packages, setup

# Beside mcr_jax/ in a checkout and inside it once installed (package-dir in pyproject.toml).
SHIPPED = ["bench", "configs", "data_builders", "data_builders.*", "launch"]

setup(
    packages=[
        *find_packages(include=["mcr_jax", "mcr_jax.*"]),
        *(f"mcr_jax.{name}" for name in find_packages(include=SHIPPED)),
    ]
)
