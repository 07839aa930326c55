"""What tokens cost, and how many of them a request may take at most.

Pure values: no state, no lock.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

ASSUMED_ANSWER_TOKENS = 4096
"""Of one choice, where a request does not say how long its answer may be: few answers are longer."""


class Price(NamedTuple):
    """USD per million tokens of the prompt (`input`) and of the answer (`output`)."""

    input: float
    output: float


def cost_usd(price: Price, prompt_tokens: int, completion_tokens: int) -> float:
    """What that many tokens cost. Divided once, at the end: the error stays below 1e-15 of the sum."""
    return (price.input * prompt_tokens + price.output * completion_tokens) / 1_000_000


class TokensAtMost(NamedTuple):
    """What a request may take: its prompt, estimated, and `choices` answers of at most `answer` tokens each.

    `answer` None: the request does not say.
    """

    prompt: int
    answer: Optional[int] = None
    choices: int = 1

    @property
    def asked(self) -> int:
        """All tokens that it asks for: what limits of tokens reserve."""
        return self.prompt + (self.answer or 0) * self.choices

    def cost_usd(self, price: Price, context_tokens: Optional[int] = None) -> float:
        """What that costs; `context_tokens` (None: unknown) bounds an answer whose length the request does not say."""
        answer = self.answer
        if answer is None:
            answer = ASSUMED_ANSWER_TOKENS
            if context_tokens is not None:
                answer = min(answer, max(context_tokens - self.prompt, 0))
        return cost_usd(price, self.prompt, answer * self.choices)
