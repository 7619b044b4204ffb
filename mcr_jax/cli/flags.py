"""Parses the flags of commands: absl flags, --config=FILE and --config.a.b=VALUE."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from mcr_jax import config as configs
from mcr_jax.cli import _shipped
from mcr_jax.config_fields import FIELDS
from mcr_jax.errors import UsageError, one_line
from mcr_jax.paths import local_folder

# Exceptions that a wrong config file may raise; any other is a bug of ours.
_CONFIG_FAULTS = (
    *(ImportError, SyntaxError, NameError, AttributeError, TypeError, KeyError, ValueError),
    *(OSError, ZeroDivisionError, IndexError, RuntimeError),
)
_NO_CONFIG = object()
_CONFIG_HELP = "NAME[:ARG], see mcr configs, or FILE.py[:ARG]; --config.a.b=VALUE overrides a field"
_NEW = "a new one needs --config=NAME or --config=FILE.py; `mcr configs` lists the names"
_NEITHER = (
    "--config=NAME or --config=FILE.py is missing, and the workdir has no config.json yet; "
    "`mcr configs` lists the names"
)


# Words of absl for a value of another type.
_WANTED = {
    "invalid literal for int": "a whole number",
    "could not convert string to float": "a number",
    "Non-boolean argument": "True or False",
}


class Flags:
    """Flags of one command.

    Args:
      command: name of the command.
      about: docstring of the command, shown by --help.
    """

    def __init__(self, command: str, about: str):
        self.command, self.about = command, about
        self.values = flags.FlagValues()
        self.operands: list[str] = []  # arguments that are no flags
        self._takes_operands = False
        self._default_config: object = _NO_CONFIG
        self._argv: Sequence[str] = ()

    def string(self, name: str, default: str, about: str) -> None:
        """Adds a flag that takes text."""
        flags.DEFINE_string(name, default, about, flag_values=self.values)

    def boolean(self, name: str, about: str) -> None:
        """Adds a flag that is off unless given."""
        flags.DEFINE_boolean(name, False, about, flag_values=self.values)

    def take_operands(self) -> None:
        """Accepts arguments that are no flags, before, between and after the flags."""
        self._takes_operands = True
        self.values.set_gnu_getopt(True)

    def experiment(self, config: str | None = None, workdir: str = "") -> None:
        """Adds --config and --workdir with their defaults."""
        self._default_config = config
        self.string("workdir", workdir, "folder of the experiment")

    def parse(self, argv: Sequence[str]) -> bool:
        """Parses `argv`; returns False after printing help.

        Raises:
          UsageError: a flag is unknown, a value is invalid, or the config file fails.
        """
        self._argv = argv = [_with_tuple(argument) for argument in argv]
        if place := _place(argv, "config"):
            position, before, given = place
            argv[position] = before + _shipped.config_file(given)
        for argument in argv:
            if field := re.match(r"--?config\.([\w.]+)", argument):
                configs.check_field(field[1])
        try:
            self._define_config(argv)
            if any(argument in ("--help", "-h", "-help") for argument in argv):
                print(f"mcr {self.command}: {self.about.strip()}\n\nflags:")
                print(self.values.get_help(prefix="  "))
                return False
            left = self.values([self.command, *argv])
        except flags.UnrecognizedFlagError as error:
            raise UsageError(self._unknown(error)) from error
        except flags.Error as error:
            if "Traceback" in str(error):  # of a config file, in an error of ml_collections
                raise UsageError(f"{self._origin()}: {self._fault(error)}") from error
            raise UsageError(_value_fault(str(error)) or type(error).__name__) from error
        except _CONFIG_FAULTS as error:
            raise UsageError(f"{self._origin() or '--config'}: {self._fault(error)}") from error
        self.operands = left[1:]
        if self.operands and not self._takes_operands:
            raise UsageError(f"{left[1]!r} is not a flag; flags look like --name=value")
        return True

    def config(self) -> ConfigDict:
        """Returns the config of --config, or of the workdir, with overrides applied.

        Raises:
          UsageError: both are missing, a field is unknown or of another type, or steps are set
            although epochs set them.
        """
        given, origin = self.values["config"].value, self._origin()
        if given is None and origin is None:
            workdir = self._given("workdir")
            if workdir and not local_folder(workdir).exists():
                raise UsageError(f"{workdir}: no such workdir; {_NEW}")
            raise UsageError(_NEITHER)
        if not isinstance(given, ConfigDict):
            file = str(origin).partition(":")[0]
            problem = "get_config() returns no ConfigDict"
            if not Path(file).exists():
                hint = _shipped.suggestion(file, _shipped.configs())
                problem = f"no such config file and no shipped config; {hint}"
            raise UsageError(f"{origin}: {problem}")
        config = configs.check(given, str(origin))
        epochs = config.train.epochs
        if epochs and self._given("config.train.steps") and not self._given("config.train.epochs"):
            raise UsageError(
                f"config.train.epochs={epochs:g} sets the steps; add --config.train.epochs=0 to "
                "set them yourself"
            )
        return config

    def _define_config(self, argv: Sequence[str]) -> None:
        if self._default_config is _NO_CONFIG:
            return
        logging.set_verbosity(logging.ERROR)  # warnings of ml_collections are errors here
        recorded = self._recorded()
        if recorded is not None:
            config_flags.DEFINE_config_dict(
                "config",
                ConfigDict(configs.load(recorded).to_dict()),  # unlocked, to be overridden
                _CONFIG_HELP,
                flag_values=self.values,
                sys_argv=[self.command, *argv],
            )
        else:
            config_flags.DEFINE_config_file(
                "config",
                self._default_config,
                _CONFIG_HELP,
                flag_values=self.values,
                sys_argv=[self.command, *argv],
            )

    def _origin(self) -> object:
        """Returns the file of the config; None without one."""
        return self._given("config") or self._recorded() or self._default_config

    def _recorded(self) -> Path | None:
        """Returns the workdir's config.json if the command reads its config there, else None."""
        workdir = self._given("workdir")
        if self._given("config") or self._default_config is not None or not workdir:
            return None
        recorded = local_folder(workdir) / "config.json"
        return recorded if recorded.exists() else None

    def _given(self, name: str) -> str | None:
        """Returns the raw value of a flag in `argv`, or None."""
        place = _place(self._argv, name)
        return place and place[2]

    def _fault(self, error: BaseException) -> str:
        """Returns the cause of a config error: the last line of ml_collections' message."""
        text = str(error)
        if ":" in str(self._origin()) and re.search(r"takes 0 positional arguments but 1", text):
            return "its get_config() takes no :ARG"
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return one_line(lines[-1], 300) if lines else type(error).__name__

    def _unknown(self, error: flags.UnrecognizedFlagError) -> str:
        if error.flagname.startswith("config.") and self._origin() is None:
            return _NEITHER
        close = difflib.get_close_matches(error.flagname, list(self.values), 1)
        hint = f"did you mean --{close[0]}?" if close else f"see mcr {self.command} --help"
        return f"unknown flag --{error.flagname}; {hint}"


def _value_fault(message: str) -> str:
    """Says in one line which type a flag wants, where absl says why it could not convert."""
    if fault := re.match(r"flag (--[\w.]+)=(.*?): ", message, re.DOTALL):
        for words, wanted in _WANTED.items():
            if words in message[fault.end() :]:
                return one_line(f"{fault[1]} wants {wanted}, not {fault[2]!r}", 300)
    return one_line(message, 300)


def _place(argv: Sequence[str], name: str) -> tuple[int, str, str] | None:
    """Finds a flag: position of the argument with its value, text before the value, value."""
    for position, argument in enumerate(argv):
        if match := re.fullmatch(rf"(--?{name}=)(.*)", argument, re.DOTALL):
            return position, match[1], match[2]
        if re.fullmatch(rf"--?{name}", argument):
            value = next(iter(argv[position + 1 :]), None)
            return None if value is None else (position + 1, "", value)
    return None


def _with_tuple(argument: str) -> str:
    """Converts --config.a.b=q,v to --config.a.b=('q', 'v') for ml_collections if b is a tuple."""
    override = re.fullmatch(r"(--?config\.([\w.]+)=)([^(\[].*)", argument, re.DOTALL)
    field = override and FIELDS.get(override[2])
    if not field or not isinstance(field.default, tuple):
        return argument
    return override[1] + repr(tuple(word.strip(" '\"") for word in override[3].split(",")))
