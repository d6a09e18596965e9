"""A decoder as lm-evaluation-harness wants to see it: texts in; log-probabilities, or texts, out.

    harness          requests, texts; it draws up prompts and computes metrics, in each process the same
      → ids          [bos] + ids of the text, as a document begins in the shards
      → batches      by length; process k mod n computes batch k
      → all          every process gets every answer, so the number of processes changes none

What is asked of a model: https://github.com/EleutherAI/lm-evaluation-harness/blob/main/docs/model_guide.md
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
MAX_NEW_TOKENS = 256  # of a text whose task sets no limit, as the harness has it
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # names of one thing


class ScoringRequest(NamedTuple):
    """Tokens whose probability is asked for, and those before them. Both are never empty."""

    context: list[int]
    continuation: list[int]


class DecoderLM(TemplateLM):
    """`max_length` is the number of tokens that the model reads at once: what is longer is cut at its beginning.

    Every process has to ask for the same: the methods are collectives.
    """

    def __init__(
        self, model: Decoder, codec: Tokenizer, *, max_length: int, batch_size: int, world: World, gather: Gather
    ) -> None:
        super().__init__()
        self.model, self.codec, self.max_length, self.batch_size = model, codec, max_length, batch_size
        self._processes, self._gather = world, gather  # for the harness there is one process: world_size stays 1

    @property
    def eot_token_id(self) -> int:
        """The id that ends a document."""
        return self.codec.eos_id()

    @property
    def prefix_token_id(self) -> int:
        """The id before a text that has no context."""
        return self.codec.bos_id() if self.codec.bos_id() >= 0 else self.codec.eos_id()

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, behind bos unless `add_special_tokens` is False."""
        ids = self.codec.encode(string)
        return [self.codec.bos_id(), *ids] if add_special_tokens is not False and self.codec.bos_id() >= 0 else ids

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Of each (context, continuation) log p in nats, and whether it is the greedy continuation."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """log p of whole texts behind a bos: each token once, with as much context as a window has."""
        windows: list[ScoringRequest] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                windows.append(ScoringRequest(*make_disjoint_window(window)))
                owners.append(owner)
        found: list[list[float]] = [[] for _ in requests]
        for owner, (log_p, _) in zip(owners, self._score(windows), strict=True):
            found[owner].append(log_p)
        return [math.fsum(parts) for parts in found]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The greedy continuation of each context, up to the first of its stop texts."""
        size, rank = self._processes.size, self._processes.rank
        for request in requests:  # of all in every process, so that all refuse alike
            self._new_tokens(request.args[1])
        mine = [self._continue(*request.args) for request in requests[rank::size]]
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
                    f"a text of {len(request.continuation)} tokens is to be scored, and the model reads 1 to "
                    f"{self.max_length}"
                )
        # Longest first: rows of a batch are alike, and what does not fit the memory shows at once.
        order = sorted(range(len(requests)), key=lambda i: (-sum(map(len, requests[i])), requests[i]))
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        mine = [
            (number, self._score_batch([requests[i] for i in batch]))
            for number, batch in enumerate(batches)
            if number % self._processes.size == self._processes.rank
        ]
        answers: dict[int, tuple[float, bool]] = {}
        for number, scores in (part for parts in self._gather(mine) for part in parts):
            answers |= dict(zip(batches[number], scores, strict=True))
        return [answers[i] for i in range(len(requests))]

    @torch.no_grad()
    def _score_batch(self, requests: Sequence[ScoringRequest]) -> list[tuple[float, bool]]:
        # The last token is never read, only predicted. What fills a row lies behind it, where nothing looks at it.
        rows = [(request.context + request.continuation)[-self.max_length - 1 :] for request in requests]
        inputs_BT = torch.zeros(len(rows), max(map(len, rows)) - 1, dtype=torch.int64)
        for row, ids in enumerate(rows):
            inputs_BT[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        logits_BTV: Tensor = self.model(inputs_BT.to(self.model.head.weight.device))
        scores = []
        for request, ids, logits_TV in zip(requests, rows, logits_BTV, strict=True):
            wanted_N = torch.tensor(request.continuation, device=logits_TV.device)
            logits_NV = logits_TV[len(ids) - 1 - len(wanted_N) : len(ids) - 1].float()
            log_p_N = logits_NV.log_softmax(-1).gather(-1, wanted_N[:, None])
            scores.append((float(log_p_N.sum()), bool((logits_NV.argmax(-1) == wanted_N).all())))
        return scores

    def _new_tokens(self, options: dict[str, Any]) -> int:
        """How many a task asks for. Raises UserError for what is not made here."""
        given = next((options[name] for name in LIMITS if options.get(name) is not None), None)
        new_tokens = min(MAX_NEW_TOKENS, self.max_length // 2) if given is None else int(given)
        if new_tokens >= self.max_length:
            raise UserError(
                f"a task asks for {new_tokens} new tokens, and the model reads no more than {self.max_length}",
                hint="a smaller max_gen_toks in the task's generation_kwargs",
            )
        if options.get("do_sample") or float(options.get("temperature") or 0) > 0:
            raise UserError(
                "a task wants texts that are drawn; here they are greedy", hint="do_sample: false in the task"
            )
        return new_tokens

    def _continue(self, context: str, options: dict[str, Any]) -> str:
        new_tokens, until = self._new_tokens(options), options.get("until") or []
        (made,) = complete(
            decoder_logits(self.model),
            self.codec,
            [(self.tok_encode(context) or [self.prefix_token_id])[new_tokens - self.max_length :]],
            greedy,
            max_new_tokens=new_tokens,
            stop_ids=frozenset({self.codec.eos_id()} - {-1}),
            stop_texts=[text for text in ([until] if isinstance(until, str) else until) if text],
        )
        return made.text
