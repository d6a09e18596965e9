"""A decoder behind the model interface of lm-evaluation-harness.

    harness          builds the prompts and computes the metrics, identically in each process
      → ids          [bos] + ids of the text, as a document starts in the shards
      → batches      by length; process k mod n computes batch k
      → gather       every process gets every result, so that results do not depend on the number of processes

Interface: https://github.com/EleutherAI/lm-evaluation-harness/blob/main/docs/model_guide.md
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from pretrain.distributed.world import World
from pretrain.errors import UserError
from pretrain.generation.completion import complete
from pretrain.generation.sampling import greedy
from pretrain.model.decoder import Decoder
from pretrain.model.logits_fn import decoder_logits
from tokenizer.models.base import Tokenizer

Gather = Callable[[Any], list[Any]]  # every process's value, by rank
MAX_NEW_TOKENS = 256  # if a task sets no limit; the harness's default
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # synonyms


class ScoringRequest(NamedTuple):
    """Tokens to score, and their context. Neither is empty."""

    context: list[int]
    continuation: list[int]


class DecoderLM(TemplateLM):
    """`max_length` is the context in tokens; longer inputs are left-truncated.

    The methods are collectives: every process must make the same requests.
    """

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer, *, max_length: int, batch_size: int, world: World, gather: Gather
    ) -> None:
        super().__init__()
        self.model, self._tokenizer, self.max_length, self.batch_size = model, tokenizer, max_length, batch_size
        # Not in the harness's own `world_size`, which stays 1: it would split the requests itself.
        self._world, self._gather = world, gather

    @property
    def eot_token_id(self) -> int:
        """The id at the end of a document."""
        return self._tokenizer.eos_id()

    @property
    def prefix_token_id(self) -> int:
        """The id before a text without context."""
        return self._tokenizer.bos_id() if self._tokenizer.bos_id() >= 0 else self._tokenizer.eos_id()

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, after bos unless `add_special_tokens` is False."""
        ids = self._tokenizer.encode(string)
        return (
            [self._tokenizer.bos_id(), *ids]
            if add_special_tokens is not False and self._tokenizer.bos_id() >= 0
            else ids
        )

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """For each (context, continuation): log p in nats, and whether it is the greedy continuation."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """log p of complete texts after bos, in nats. Each token is scored once, with the context of its window."""
        windows: list[ScoringRequest] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                windows.append(ScoringRequest(*make_disjoint_window(window)))
                owners.append(owner)
        log_ps: list[list[float]] = [[] for _ in requests]
        for owner, (log_p, _) in zip(owners, self._score(windows), strict=True):
            log_ps[owner].append(log_p)
        return [math.fsum(parts) for parts in log_ps]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The greedy continuation of each context, up to its first stop text."""
        size, rank = self._world.size, self._world.rank
        for request in requests:  # all of them in every process, so that all raise the same error
            self._max_new_tokens(request.args[1])
        mine = [self._generate(*request.args) for request in requests[rank::size]]
        by_rank = self._gather(mine)
        return [by_rank[number % size][number // size] for number in range(len(requests))]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return self._score([ScoringRequest(context, continuation) for _, context, continuation in requests])

    def _score(self, requests: Sequence[ScoringRequest]) -> list[tuple[float, bool]]:
        for request in requests:
            if not 0 < len(request.continuation) <= self.max_length:
                raise UserError(
                    f"a continuation of {len(request.continuation)} tokens cannot be scored: the limits are 1 and "
                    f"{self.max_length}"
                )
        # Longest first: little padding in a batch, and running out of memory shows at once.
        order = sorted(range(len(requests)), key=lambda i: (-sum(map(len, requests[i])), requests[i]))
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        mine = [
            (number, self._score_batch([requests[i] for i in batch]))
            for number, batch in enumerate(batches)
            if number % self._world.size == self._world.rank
        ]
        answers: dict[int, tuple[float, bool]] = {}
        for number, scores in (part for parts in self._gather(mine) for part in parts):
            answers |= dict(zip(batches[number], scores, strict=True))
        return [answers[i] for i in range(len(requests))]

    @torch.no_grad()
    def _score_batch(self, requests: Sequence[ScoringRequest]) -> list[tuple[float, bool]]:
        # The last token is predicted, not read. Rows are right-padded: causal attention never sees the padding.
        rows = [(request.context + request.continuation)[-self.max_length - 1 :] for request in requests]
        inputs_BT = torch.zeros(len(rows), max(map(len, rows)) - 1, dtype=torch.int64)
        for row, ids in enumerate(rows):
            inputs_BT[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        logits_BTV: Tensor = self.model(inputs_BT.to(self.model.head.weight.device))
        scores = []
        for request, ids, logits_TV in zip(requests, rows, logits_BTV, strict=True):
            targets_N = torch.tensor(request.continuation, device=logits_TV.device)
            logits_NV = logits_TV[len(ids) - 1 - len(targets_N) : len(ids) - 1].float()
            log_p_N = logits_NV.log_softmax(-1).gather(-1, targets_N[:, None])
            scores.append((float(log_p_N.sum()), bool((logits_NV.argmax(-1) == targets_N).all())))
        return scores

    def _max_new_tokens(self, options: dict[str, Any]) -> int:
        """The limit that a task sets. Raises UserError if it does not fit, or if the task samples."""
        given = next((options[name] for name in LIMITS if options.get(name) is not None), None)
        new_tokens = min(MAX_NEW_TOKENS, self.max_length // 2) if given is None else int(given)
        if new_tokens >= self.max_length:
            raise UserError(
                f"a task asks for {new_tokens} new tokens; the context is {self.max_length}",
                hint="set a smaller max_gen_toks in the task's generation_kwargs",
            )
        if options.get("do_sample") or float(options.get("temperature") or 0) > 0:
            raise UserError(
                "a task samples; only greedy decoding is supported", hint="set do_sample: false in the task"
            )
        return new_tokens

    def _generate(self, context: str, options: dict[str, Any]) -> str:
        new_tokens, until = self._max_new_tokens(options), options.get("until") or []
        (completion,) = complete(
            decoder_logits(self.model),
            self._tokenizer,
            [(self.tok_encode(context) or [self.prefix_token_id])[new_tokens - self.max_length :]],
            greedy,
            max_new_tokens=new_tokens,
            stop_ids=frozenset({self._tokenizer.eos_id()} - {-1}),
            stop_texts=[text for text in ([until] if isinstance(until, str) else until) if text],
        )
        return completion.text
