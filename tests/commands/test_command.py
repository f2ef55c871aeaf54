"""Every command satisfies the contract in ddpm/commands/command.py."""

import inspect
import pkgutil
from importlib import import_module

import ddpm.commands
from ddpm.__main__ import COMMANDS
from ddpm.commands.command import Plan, SweepCommand
from ddpm.config import conf_dir

REQUIRED, OPTIONAL = ("plan", "run"), ("after_sweep",)


def test_each_command_is_a_module_and_a_yaml() -> None:
    modules = {
        name: import_module(f"ddpm.commands.{name}") for _, name, _ in pkgutil.iter_modules(ddpm.commands.__path__)
    }
    complete = {name for name, module in modules.items() if all(hasattr(module, method) for method in REQUIRED)}
    assert complete == COMMANDS.keys()
    assert {path.stem for path in conf_dir().glob("*.yaml")} == COMMANDS.keys()


def test_each_command_has_the_signatures_of_the_contract() -> None:
    for name in COMMANDS:
        command = import_module(f"ddpm.commands.{name}")
        for method in (*REQUIRED, *(method for method in OPTIONAL if hasattr(command, method))):
            _, *expected = inspect.signature(getattr(SweepCommand, method)).parameters.values()
            signature = inspect.signature(getattr(command, method))
            assert list(signature.parameters.values()) == expected, f"{name}.{method}"
        assert inspect.signature(command.plan).return_annotation is Plan, name
