"""What a model writes: `<think> trace </think><answer> diagnosis </answer>`, read by one rule."""

import dataclasses
import re

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_THINK = re.compile(r"<think>(.*?)(?:</think>|<answer>|\Z)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Completion:
    """A parsed completion.

    Attributes:
      trace: the reasoning, stripped; what stands before the answer if the tags are missing.
      answer: the diagnosis, stripped, or None unless there is exactly one non-empty answer.
    """

    trace: str
    answer: str | None


def parse(text: str) -> Completion:
    """Reads any text, well-formed or not; never raises."""
    answers = _ANSWER.findall(text)
    single = len(answers) == 1 and "<answer>" not in answers[0]
    answer = answers[0].strip() if single else ""
    think = _THINK.search(text)
    trace = think.group(1) if think else re.split(r"</think>|<answer>", text, maxsplit=1)[0]
    return Completion(trace=trace.strip(), answer=answer or None)


def render(trace: str, answer: str) -> str:
    """The text a model is trained to write; `parse` gives trace and answer back."""
    return f"<think>\n{trace}\n</think>\n<answer>{answer}</answer>"
