"""The reference engine: one trial at a time with transformers' Trainer and PEFT as they are."""

import functools
import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import get_peft_model_state_dict
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lrsweep.config.schema import SweepConfig
from lrsweep.errors import StorageError
from lrsweep.files import checkpoint
from lrsweep.files.atomic import disk_faults
from lrsweep.files.row_losses import RowLosses
from lrsweep.training.data.collate import IGNORED
from lrsweep.training.data.loading import FinetuneData, collate
from lrsweep.training.engines import Host, Measurement, Outcome, Trial, failed
from lrsweep.training.engines.adapter_files import write_adapter
from lrsweep.training.engines.checkpointing import is_due, trial_digest
from lrsweep.training.engines.resumable_trainer import ENGINE, ResumableTrainer
from lrsweep.training.evaluation import evaluate
from lrsweep.training.inputs import inputs
from lrsweep.training.lora_init import takes_from_base
from lrsweep.training.loss import anchored_loss, frozen_copy, summed_loss, weighing
from lrsweep.training.model import load_model, lora_config, make_trainable, resolve_dtype
from lrsweep.training.optimizer import optimizer_class, with_own_rates
from lrsweep.training.phases import NONE, phase
from lrsweep.training.router import check_padding, router_loss


class TrainerEngine:
    """Trains the host's trials one after another, each from a freshly loaded base."""

    def __init__(self) -> None:
        # A trial's loss at step 0 is the base's, whatever its hyperparameters, so it is measured once.
        self._base_loss: dict[tuple[Any, ...], RowLosses] = {}

    def run(self, host: Host) -> None:
        """Trains every trial of the host. An error in one trial ends that trial, not the run."""
        while trial := host.next_trial():
            try:
                outcome = self._train(trial, host)
            except (StorageError, torch.AcceleratorError):
                raise  # not the trial's fault, and resumable; after the latter the device is lost to this process
            except Exception as fault:
                outcome = failed(trial, fault)
            host.finish(outcome)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _train(self, trial: Trial, host: Host) -> Outcome:
        config = trial.config
        tokenizer, data = inputs(config.model, config.data)
        phase("loading the model")
        base_model = load_model(config.model, config.finetune)
        check_padding(config, base_model.config)
        anchor = frozen_copy(base_model) if config.training.loss == "asft" else None
        model = make_trainable(base_model, config.finetune, config.training.seed)
        lora = lora_config(config.finetune)
        taken = config.finetune.mode == "lora" and takes_from_base(lora)
        first = {name: weight.clone() for name, weight in get_peft_model_state_dict(model).items()} if taken else {}
        reporter = _Reporter(trial, host)
        own_rates = with_own_rates(model, config.optimizer, config.finetune)
        kept = checkpoint.load(trial.folder, ENGINE, trial_digest(config))
        trainer = _Trainer(
            trial=trial,
            schedule_steps=config.training.schedule_steps,
            data=data,
            reporter=reporter,
            anchor=anchor,
            model=model,
            args=training_arguments(trial),
            train_dataset=data.train,
            eval_dataset=data.evaluation,
            data_collator=functools.partial(collate, pad_token_id=tokenizer.pad_token_id),
            processing_class=tokenizer,
            callbacks=[reporter],
            compute_loss_func=_loss_func(config),
            optimizers=(own_rates, None),
            optimizer_cls_and_kwargs=optimizer_class(config.optimizer) if own_rates is None else None,
        )
        # What is left of the base, and what an adapter takes, are rounded in their own way.
        drawn = (
            (lora.init_lora_weights, lora.r, lora.lora_alpha, lora.use_rslora, config.training.seed) if taken else ()
        )
        base = (config.model.model_dump_json(), config.data.model_dump_json(), config.training.eval_batch_size, drawn)
        if kept is None:
            if base not in self._base_loss:
                phase("evaluating the model before training")
                self._base_loss[base] = trainer.row_losses()
            reporter.measured(Measurement.of_evaluation(trial.number, 0, self._base_loss[base]))
        phase(NONE)
        if reporter.ended is None:
            trainer.train_from(kept)
        outcome = reporter.ended or Outcome(trial.number, trainer.state.global_step, "complete", engine="trainer")
        if outcome.status == "complete" and config.training.save_adapter and config.finetune.mode == "lora":
            with disk_faults(trial.folder):
                folder, trained = trial.folder / "adapter", trainer.model
                if taken:
                    path = trained.config._name_or_path
                    write_adapter(folder, get_peft_model_state_dict(trained), lora, path, first)
                else:
                    trained.save_pretrained(folder, safe_serialization=True)
        return outcome


def training_arguments(trial: Trial) -> TrainingArguments:
    """The trial's config as transformers' TrainingArguments. Every step is logged, and a NaN is logged as NaN."""
    config, training = trial.config, trial.config.training
    compute = resolve_dtype(config.model)
    arguments = TrainingArguments(
        output_dir=str(trial.folder),
        max_steps=training.max_steps,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        per_device_eval_batch_size=training.eval_batch_size,
        learning_rate=config.optimizer.lr,
        weight_decay=config.optimizer.weight_decay,
        max_grad_norm=training.max_grad_norm,
        lr_scheduler_type=config.scheduler.name,
        lr_scheduler_kwargs=config.scheduler.kwargs,
        warmup_steps=config.scheduler.warmup(training.schedule_steps),
        seed=training.seed,
        bf16=compute == torch.bfloat16,
        **_checkpointing(training.gradient_checkpointing),
        eval_strategy="steps",
        eval_steps=training.eval_every,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        torch_compile=config.engine.compile,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    # With several visible GPUs, Trainer would split each batch over them and so change the batch size.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _loss_func(config: SweepConfig) -> Callable[..., torch.Tensor] | None:
    """What Trainer is to minimise; None for the loss of transformers.

    For float64 it is the same without its cast to float32, which would give a float64 run float32's gradients.
    """
    exact, weigh = resolve_dtype(config.model) == torch.float64, weighing(config.training)
    if weigh is None and not exact:
        return None

    def mean_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any) -> torch.Tensor:
        logits = outputs.logits[:, :-1]
        mean: torch.Tensor = summed_loss(logits if exact else logits.float(), labels[:, 1:], weigh) / num_items_in_batch
        return mean

    return mean_loss


def _checkpointing(wanted: bool) -> dict[str, Any]:
    """The arguments for activation checkpointing, under the name that the installed transformers has for it."""
    if not wanted:
        return {}
    new = "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    name = "activation_checkpointing" if new else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


class _Trainer(ResumableTrainer):
    """transformers' Trainer, but the schedule may be longer than the run, and the eval loss is a mean over tokens.

    Args:
        schedule_steps: Optimizer steps of the schedule.
        data: The eval set, which `lrsweep.training.evaluation` evaluates.
        reporter: Gets the losses on its rows.
        anchor: The base, if the loss is ASFT's.
        **arguments: ResumableTrainer's arguments.
    """

    def __init__(
        self,
        *,
        schedule_steps: int,
        data: FinetuneData,
        reporter: "_Reporter",
        anchor: torch.nn.Module | None,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.remove_callback(PrinterCallback)  # the screen is the host's
        self._schedule_steps = schedule_steps
        self._data = data
        self._reporter = reporter
        self._anchor = anchor
        training = self._own_trial.config.training
        self._of_batches = training.mean_over == "batches"
        self._weighed = training.loss != "cross_entropy"
        if self._of_batches:
            # Trainer then has each batch's own mean, and divides it by the batches of a step.
            self.model_accepts_loss_kwargs = False

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule over `schedule_steps`, not over the run's steps."""
        return super().create_scheduler(self._schedule_steps, optimizer)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss; ASFT's needs the base's logits too, and for a loss of ours the router's is added."""
        if self._anchor is None:
            if self.compute_loss_func is None or self._weighed:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            batches = self.current_gradient_accumulation_steps if self._of_batches else 1
            if self._of_batches:
                num_items_in_batch = batches * (inputs["labels"][:, 1:] != IGNORED).sum()
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            return loss + router_loss(self.model, outputs) / batches
        training = self._own_trial.config.training
        labels = inputs.pop("labels")[:, 1:]
        logits = model(**inputs).logits[:, :-1]
        with torch.no_grad():
            base = self._anchor(**inputs).logits[:, :-1]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return anchored_loss(logits, labels, base, training.asft_alpha, num_items_in_batch)

    def row_losses(self) -> RowLosses:
        """The loss on each row of the eval set."""
        with self.compute_loss_context_manager():
            return evaluate(
                self.model, self._data.evaluation, self.args.eval_batch_size, self.processing_class.pad_token_id
            )

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The loss on the eval set, as `eval_loss`."""
        losses = self.row_losses()
        self._reporter.evaluated(self.state.global_step, losses)
        metrics = {"eval_loss": losses.mean}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _Reporter(TrainerCallback):
    """Reports every measurement to the host; ends the run when the host asks for it or when a metric is not finite.

    Attributes:
        ended: How the trial ended; None while it trains.
    """

    def __init__(self, trial: Trial, host: Host) -> None:
        self._trial = trial
        self._host = host
        self._saved_at = time.monotonic()
        self._evaluated_at = 0.0
        # How long the last checkpoint took.
        self._cost = 0.0
        self._paused = False
        self.ended: Outcome | None = None

    def evaluated(self, step: int, losses: RowLosses) -> None:
        """Reports an evaluation, except the one before training."""
        if step > 0:
            self.measured(Measurement.of_evaluation(self._trial.number, step, losses))

    def measured(self, measurement: Measurement) -> None:
        """Reports a measurement and sets `ended` if the trial is to end."""
        number, step = measurement.number, measurement.step
        stop = self._host.report([measurement])
        if self.ended is not None:
            return
        if measurement.not_finite:
            self.ended = Outcome(number, step, "diverged", f"{measurement.not_finite} at step {step}", "trainer")
        elif number in stop and step < self._trial.config.training.max_steps:
            self.ended = Outcome(number, step, "stopped", engine="trainer")
            self._paused = stop[number] == "paused"

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Requests an evaluation after the last step, even if eval_every does not divide it."""
        control.should_evaluate = control.should_evaluate or state.global_step >= state.max_steps
        return control

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> TrainerControl:
        """Reports a training step."""
        if "loss" in logs:
            names = ("loss", "grad_norm", "learning_rate")
            metrics = {name: float(logs[name]) for name in names if name in logs}
            self.measured(Measurement(self._trial.number, state.global_step, metrics))
            self._end(control)
        return control

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Notes the time of a checkpoint, and how long it took."""
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - self._evaluated_at
        return control

    def _end(self, control: TrainerControl) -> None:
        """Stops the run if the trial has ended, with a checkpoint if it is only paused."""
        training = self._trial.config.training
        control.should_training_stop = control.should_training_stop or self.ended is not None
        control.should_save = control.should_save or (self._paused and training.checkpoint_seconds is not None)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: dict[str, float], **_: Any
    ) -> TrainerControl:
        """Requests a checkpoint after an evaluation if one is due."""
        if state.global_step > 0:
            due = self.ended is None and state.global_step < state.max_steps
            self._evaluated_at = time.monotonic()
            control.should_save = due and is_due(self._trial.config.training, self._saved_at, self._cost)
            self._end(control)
        return control
