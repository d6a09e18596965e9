"""The model under DeepSpeed: ZeRO stages 0–3, precision, gradient accumulation, clipping.

The only module that imports deepspeed. Measurements behind the comments: docs/decisions/0002-deepspeed.md.
"""

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pretrain.config.schema import Config
from pretrain.distributed.world import World
from pretrain.model.decoder import Decoder
from pretrain.model.init import init_weights
from pretrain.model.kv_cache import KVCache
from pretrain.model.logits_fn import LogitsFn
from pretrain.model.loss import LossSums
from pretrain.optim.adamw import build_optimizer
from pretrain.optim.clipping import clip_gradients
from pretrain.optim.optimizer_state import state_names
from pretrain.plan.counts import count_parameters, plan_batch


class Batch(NamedTuple):
    """Inputs and targets (B, T); with attention within documents, also the document number of each position (B, T)."""

    inputs: Tensor
    targets: Tensor
    documents: Tensor | None = None


class StepSums(NamedTuple):
    """Results of one optimizer step: sums over this rank's targets, and the global gradient norm before clipping."""

    cross_entropy: float
    z_squared: float
    grad_norm: float


def deepspeed_config(config: Config, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration, derived. `engine.deepspeed` overrides it, merged one level deep."""
    plan = plan_batch(config, world_size)
    # DeepSpeed allocates buckets of 5e8 elements, 2 GB, however small the model.
    bucket = min(500_000_000, count_parameters(config.model))
    bucket += bucket % 2  # DeepSpeed requires an even size
    derived: dict[str, Any] = {
        "train_batch_size": config.batch.global_batch_size,
        "train_micro_batch_size_per_gpu": config.batch.micro_batch_size,
        "gradient_accumulation_steps": plan.grad_accum_steps,
        # Set explicitly: without it DeepSpeed clips at 1.0. Stage 0 clips by itself: DeepSpeed sums squares in fp32 there.
        "gradient_clipping": config.optimizer.clip_grad_norm if config.engine.zero_stage else 0.0,
        "zero_optimization": {
            "stage": config.engine.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
        "bf16": {"enabled": config.engine.precision == "bf16"},
        "fp16": {"enabled": config.engine.precision == "fp16"},
        "steps_per_print": 10**12,  # never
        # With offload, torch's AdamW updates on the host: DeepSpeed's own needs a C++ compiler at start.
        "zero_force_ds_cpu_optimizer": False,
    }
    if config.engine.precision == "bf16" and config.engine.zero_stage >= 2:
        # By default gradients accumulate in bf16: an error of 0.3 % over 4 micro-batches, 1.5 % over 256. Not at stage 1:
        # there DeepSpeed switches to BF16_Optimizer, whose layout zero_partitions.py does not know.
        derived["data_types"] = {"grad_accum_dtype": "fp32"}
    for name, value in config.engine.deepspeed.items():
        base = derived.get(name)
        derived[name] = {**base, **value} if isinstance(base, dict) and isinstance(value, dict) else value
    return derived


class Engine:
    """A DeepSpeed engine around a freshly initialized Decoder."""

    def __init__(self, config: Config, world: World, device: torch.device) -> None:
        deepspeed = import_deepspeed(device)
        self.config, self.device, self.stage = config, device, config.engine.zero_stage
        options = deepspeed_config(config, world.size)
        self._averaged = plan_batch(config, world.size).grad_accum_steps * world.size
        model = _build_model(deepspeed, config, device, options)
        if config.engine.compile and self.stage == 3:
            from deepspeed.utils import set_z3_leaf_modules

            # Gather a block at once: hooks of its submodules would break the compiled graph.
            set_z3_leaf_modules(model, [type(model.blocks[0])])
        optimizer = build_optimizer(model, config.optimizer)
        self.state_names = state_names(optimizer)
        self.deepspeed, self.optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=options, dist_init_required=False
        )
        self.model: Decoder = self.deepspeed.module
        if config.engine.compile:
            for block in self.model.blocks:
                # Only the forward: compiling the module would rename its parameters.
                block.forward = torch.compile(block.forward, dynamic=False, fullgraph=True)

    def train_step(
        self,
        batches: Sequence[Batch],
        global_targets: int,
        lr: float,
        *,
        around_forward: Callable[[], AbstractContextManager[None]] = nullcontext,
        before_update: Callable[[], None] = lambda: None,
    ) -> StepSums:
        """One optimizer step over this rank's micro-batches.

        The loss is the mean over `global_targets`, the number of targets on all ranks. `around_forward` wraps each forward;
        `before_update` runs once gradients are complete.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # Undoes DeepSpeed's division by world size and configured accumulation steps, even if there are fewer batches.
        scale = self._averaged / max(1, global_targets)
        cross_entropy = torch.zeros((), dtype=torch.float64, device=self.device)
        z_squared, grad_norm = cross_entropy.clone(), 0.0
        self.deepspeed.train()
        for index, batch in enumerate(batches):
            # Explicit, as a batch-size ramp runs fewer micro-batches than DeepSpeed would count.
            self.deepspeed.set_gradient_accumulation_boundary(index == len(batches) - 1)
            with around_forward():
                sums = self._loss(batch)
            self.deepspeed.backward(sums.total * scale)
            cross_entropy += sums.cross_entropy.detach()
            z_squared += sums.z_squared.detach()
            if self.stage == 0 and index == len(batches) - 1:
                # After the last backward, gradients are averaged over ranks.
                grad_norm = clip_gradients(self.model.parameters(), self.config.optimizer.clip_grad_norm)
            if index == len(batches) - 1:
                before_update()
            self.deepspeed.step()
        if self.stage > 0:
            grad_norm = float(self.deepspeed.get_global_grad_norm() or 0.0)
        return StepSums(float(cross_entropy), float(z_squared), grad_norm)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[float, float]:
        """Summed cross-entropy of one batch, in nats, and the number of targets predicted by the argmax."""
        self.deepspeed.eval()
        sums = self._loss(batch)
        return float(sums.cross_entropy), float(sums.correct)

    @torch.no_grad()
    def logits(self, tokens_BT: Tensor, cache: KVCache) -> Tensor:
        """Logits (B, 1, V) of the last tokens, which follow those in the cache. A collective under ZeRO-3."""
        self.deepspeed.eval()
        # A compiled block would be recompiled for each cache length.
        with torch.compiler.set_stance("force_eager") if self.config.engine.compile else nullcontext():
            logits_B1V: Tensor = self.deepspeed(tokens_BT, cache=cache)
        return logits_B1V

    def logits_fn(self) -> LogitsFn:
        """Logits of the current weights, for decoding."""
        return LogitsFn(self.logits, self.config.model, self.model.embedding.tokens.weight.dtype, self.device)

    def _loss(self, batch: Batch) -> LossSums:
        inputs_BT, targets_BT, *documents_BT = (
            None if part is None else part.to(self.device, non_blocking=True) for part in batch
        )
        loss = self.config.loss
        return self.deepspeed(inputs_BT, targets_BT, loss.z_loss_weight, loss.chunk_tokens, *documents_BT)

    def close(self) -> None:
        """Release DeepSpeed's hooks and buffers."""
        self.deepspeed.destroy()


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed without its log output and initialize its communication layer."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed.*")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.comm
        import deepspeed.ops

        _import_muon()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if device.type == "cpu":
        # Otherwise DeepSpeed compiles its shared-memory operator for a minute, and fails without a C++ compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", verbose=False)
    return deepspeed


def _import_muon() -> None:
    # DeepSpeed's optimizers import Muon, which calls torch.compile at import: a second of every start. We do not use Muon.
    compiler, torch.compile = torch.compile, lambda function: function
    try:
        with suppress(ModuleNotFoundError):  # moved in another version: only costs that second
            import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    finally:
        torch.compile = compiler


def _build_model(deepspeed: Any, config: Config, device: torch.device, options: dict[str, Any]) -> Decoder:
    """A Decoder with initial weights. At ZeRO-3 parameters are partitioned on creation: no rank ever holds the full model."""
    partitioned = config.engine.zero_stage == 3
    creation: AbstractContextManager = nullcontext()
    if partitioned:
        # No `dtype=`: on CPU DeepSpeed 0.19.8 ignores it and rounds to bf16. The dtype in the dictionary is respected.
        creation = deepspeed.zero.Init(config_dict_or_path=options)
    with creation:
        model = Decoder(config.model, activation_checkpoint_every=config.engine.activation_checkpoint_every)

    def gather(parameter: nn.Parameter) -> AbstractContextManager:
        return deepspeed.zero.GatheredParameters(parameter, modifier_rank=0) if partitioned else nullcontext()

    init_weights(model, config.model, config.run.seed, gather)
    return model if partitioned else model.to(device)
