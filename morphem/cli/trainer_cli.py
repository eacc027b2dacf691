"""LightningCLI with morphem's rules: plug-ins by short name, honest resume, settings inside every checkpoint."""

from functools import cached_property
from importlib.metadata import version
from typing import Any, NoReturn

import lightning.pytorch as L
import torch
import yaml
from jsonargparse import ActionConfigFile, set_loader  # type: ignore[attr-defined]
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

import morphem.callbacks  # noqa: F401  (its classes can then be named without a path)
from morphem.callbacks import GracefulStop
from morphem.checkpoints import AtomicCheckpointIO
from morphem.cli import resume
from morphem.cli.config_files import load_for_parser
from morphem.data.module import ShardData
from morphem.errors import ConfigError
from morphem.methods.base import Method

set_loader("yaml", load_for_parser)


class ParserError(Exception):
    """A message of the argument parser, without its usage text."""


class Parser(LightningArgumentParser):
    """Raises its errors instead of printing its usage and leaving the process."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message."""
        raise ParserError(message) from ex


class RunSettings(SaveConfigCallback):
    """Writes `config.yaml` into the run's folder and the same settings into every checkpoint."""

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the settings, as plain data."""
        checkpoint[resume.CONFIG_KEY] = {**self._settings, "world_size": trainer.world_size}

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return plain_settings(self.parser, self.config)


def plain_settings(parser: LightningArgumentParser, config: Any) -> dict[str, Any]:
    """Return all settings of a run as plain data, defaults included.

    Args:
        parser: Made the config.
        config: What it made of files and command line.
    """
    settings: dict[str, Any] = yaml.safe_load(parser.dump(config, skip_none=False, skip_link_targets=False))
    return settings


class TrainerCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict`."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Build a parser that raises its errors."""
        kwargs.setdefault("dump_header", [f"morphem=={version('morphem')}"])
        parser = Parser(**kwargs)
        parser.add_argument(
            "-c",
            "--config",
            action=ActionConfigFile,
            help="A config: a path, or the name of one that the package ships; may be repeated, later ones win.",
        )
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add morphem's own options and links."""
        parser.add_argument(
            "--resume_override",
            type=list[str],
            default=[],
            help="Settings that may differ from those of the checkpoint given by --ckpt_path: keys, or [all].",
        )
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("seed_everything", "model.init_args.seed")

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning's own version lets a checkpoint's settings replace the user's."""

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer, which writes whole checkpoints or none."""
        plugins = self._get(self.config_init, "trainer").get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        return super().instantiate_trainer(**kwargs)

    def before_instantiate_classes(self) -> None:
        """Refuse a resume with other settings, before anything is built."""
        own = self.config[self.subcommand] if self.subcommand else self.config
        override, path = own.get("resume_override") or [], own.get("ckpt_path")
        if override and not path:
            raise ConfigError("--resume_override has no effect without --ckpt_path; give both or neither.")
        if path:
            own["weights_only"] = True  # Lightning's default would unpickle what the file likes
        if self.subcommand == "fit" and path and path not in {"last", "best", "hpc", "registry"}:
            settings = yaml.safe_load(self._parser(self.subcommand).dump(own, skip_none=False, skip_link_targets=False))
            stored = resume.load_settings(path)
            accepted = resume.refuse_differences(path, stored, settings, _processes(settings), override)
            for key, (old, new) in accepted.items():
                print(f"resume: {key} is now {new!r} (was {old!r})")

    def predict(
        self,
        model: Method,
        datamodule: ShardData,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        return_predictions: bool | None = None,
    ) -> None:
        """Write the table that `morphem embed` writes, with the run's encoder, data and trainer.

        Args:
            model: Of the run; the encoder comes out of the checkpoint.
            datamodule: Says which shards, which query, and how many processes read.
            ckpt_path: Checkpoint whose encoder embeds.
            weights_only: Always on.
            return_predictions: No effect; rows are written, not returned.

        Raises:
            ConfigError: If there are no shards or no checkpoint, or the table exists.
        """
        from morphem.cli.predict import predict

        predict(self.trainer, datamodule, ckpt_path)


def _processes(settings: dict[str, Any]) -> int:
    """Number of processes that the trainer settings ask for; `auto` counts the accelerators present."""
    trainer = settings.get("trainer") or {}
    devices = trainer.get("devices", "auto")
    if isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    if devices in ("auto", -1, "-1"):
        on_cpu = trainer.get("accelerator") == "cpu" or not torch.cuda.is_available()
        devices = 1 if on_cpu else torch.cuda.device_count()
    count = (
        len(devices) if isinstance(devices, list) else len(devices.split(",")) if isinstance(devices, str) else devices
    )
    return int(count) * int(trainer.get("num_nodes", 1))


class CheckCLI(TrainerCLI):
    """Builds what `fit` would build, the model on the meta device, and runs nothing."""

    @classmethod
    def build(cls, argv: list[str]) -> "CheckCLI":
        """Parse and build.

        Args:
            argv: Options of `fit`, with full paths.
        """
        return cls(**_settings(argv), run=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Take the options that `fit` has beside its settings, so that the config of a run can be checked."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="The checkpoint to go on from.")
        parser.add_argument("--weights_only", type=bool | None, default=None, help="Always on.")

    def instantiate_classes(self) -> None:
        """Build with every tensor on the meta device: shapes without memory."""
        with torch.device("meta"):
            super().instantiate_classes()


def _settings(argv: list[str]) -> dict[str, Any]:
    return {
        "model_class": Method,
        "datamodule_class": ShardData,
        "subclass_mode_model": True,
        "subclass_mode_data": True,
        "auto_configure_optimizers": False,
        "seed_everything_default": 0,
        "save_config_callback": RunSettings,
        "save_config_kwargs": {"overwrite": True},
        "parser_kwargs": {"default_env": False},
        "args": argv,
    }


def run_cli(argv: list[str]) -> int:
    """Run a command of LightningCLI.

    Returns:
        0, or 130 if the run was stopped by a signal and left a checkpoint.
    """
    cli = TrainerCLI(**_settings(argv))
    callbacks: list[Any] = getattr(cli.trainer, "callbacks", [])
    return 130 if any(isinstance(c, GracefulStop) and getattr(c, "stopped", False) for c in callbacks) else 0
