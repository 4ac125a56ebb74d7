"""How good labels are, by the scorers that papers use."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from throughtime.data.spans import Span, labels_of, spans_of


@dataclass(frozen=True)
class Scores:
    """What a labelling of sentences is worth. f1, precision and recall are of whole spans (or words)."""

    scorer: str  # "seqeval", "words" or "accuracy"
    accuracy: float  # of single labels
    f1: float | None = None
    precision: float | None = None
    recall: float | None = None
    classes: dict[str, dict[str, float]] = field(default_factory=dict)  # precision, recall, f1, count of each
    sentences: int = 0
    tokens: int = 0
    unseen: int = 0  # labels that the training data did not have; they count as missed
    intent_accuracy: float | None = None
    oov_recall: float | None = None  # of words that the training data did not have ("out of vocabulary"), by SIGHAN
    iv_recall: float | None = None  # of those that it had
    oov_rate: float | None = None  # the share of words that it did not have

    @property
    def main(self) -> float:
        """What is compared: F1 where there are spans."""
        return self.accuracy if self.f1 is None else self.f1

    def to_json(self) -> dict[str, Any]:
        """The figures that there are."""
        measures = ("f1", "precision", "recall", "oov_recall", "iv_recall", "oov_rate", "accuracy", "intent_accuracy")
        names = (*measures, "sentences", "tokens", "unseen", "scorer")
        found = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return {**found, "classes": self.classes}


def score(gold: Sequence[Sequence[str]], found: Sequence[Sequence[str]], scheme: str, **also: Any) -> Scores:
    """Compares labels with the right ones.

    Names and slots are scored by seqeval, which counts as the CoNLL scorer does; words by the SIGHAN bake-offs' word
    F1 (a word is right where both its ends are); labels of no scheme by their accuracy.
    """
    tokens = sum(map(len, gold))
    right = sum(a == b for one, other in zip(gold, found, strict=True) for a, b in zip(one, other, strict=True))
    common: dict[str, Any] = {
        "accuracy": right / max(tokens, 1),
        "sentences": len(gold),
        "tokens": tokens,
        **also,
    }
    if scheme == "none":
        return Scores("accuracy", classes=_each_label(gold, found), **common)
    if {label for sentence in gold for label in sentence} <= set("BMES"):
        words: dict[str, Any] = dict(words_f1([spans_of(s) for s in gold], [spans_of(s) for s in found]))
        return Scores("words", **common, **words)
    return Scores("seqeval", **common, **_seqeval(gold, found))


def words_f1(gold: Sequence[Sequence[Span]], found: Sequence[Sequence[Span]]) -> dict[str, float]:
    """Precision, recall and F1 of words: the share of those found that are right, and of the right that are found.

    >>> words_f1([[Span("", 0, 2), Span("", 2, 3)]], [[Span("", 0, 1), Span("", 1, 2), Span("", 2, 3)]])["recall"]
    0.5
    """
    right = sum(len(set(one) & set(other)) for one, other in zip(gold, found, strict=True))
    return _f1(right, sum(map(len, found)), sum(map(len, gold)))


def oov_recalls(
    sentences: Sequence[Sequence[str]],
    gold: Sequence[Sequence[str]],
    found: Sequence[Sequence[str]],
    known: Collection[str],
) -> dict[str, float | None]:
    """The recall of words that are not known, and of those that are, and how many are not: the bake-offs' measures.

    >>> oov_recalls(["春眠不"], [["B", "E", "S"]], [["B", "E", "B"]], {"不"})
    {'oov_recall': 1.0, 'iv_recall': 1.0, 'oov_rate': 0.5}

    Args:
        sentences: characters.
        gold: their right labels, B M E S.
        found: those that were found.
        known: words of the training data.
    """
    right, count = {True: 0, False: 0}, {True: 0, False: 0}
    for characters, one, other in zip(sentences, gold, found, strict=True):
        said = set(spans_of(other))
        for span in spans_of(one):
            new = "".join(characters[span.start : span.stop]) not in known
            count[new] += 1
            right[new] += span in said
    return {
        "oov_recall": right[True] / count[True] if count[True] else None,
        "iv_recall": right[False] / count[False] if count[False] else None,
        "oov_rate": count[True] / max(sum(count.values()), 1),
    }


def _seqeval(gold: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> dict[str, Any]:
    if not any(spans_of(sentence) for sentence in (*gold, *found)):
        return {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    from seqeval.metrics import classification_report  # here, as it brings scikit-learn, which nothing else needs

    report = classification_report(_bio(gold), _bio(found), output_dict=True, zero_division=0)
    names = {"precision": "precision", "recall": "recall", "f1-score": "f1", "support": "count"}
    rows = {kind: {names[k]: float(v) for k, v in row.items()} for kind, row in report.items()}
    whole = rows.pop("micro avg")
    classes = {kind: row for kind, row in rows.items() if kind not in ("macro avg", "weighted avg")}
    return {**{name: whole[name] for name in ("precision", "recall", "f1")}, "classes": classes}


def _bio(sentences: Sequence[Sequence[str]]) -> list[list[str]]:
    """The same spans in the scheme that the scorer knows best."""
    return [labels_of(spans_of(sentence), len(sentence), "bio") for sentence in sentences]


def _each_label(gold: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> dict[str, dict[str, float]]:
    pairs = [(a, b) for one, other in zip(gold, found, strict=True) for a, b in zip(one, other, strict=True)]
    return class_scores([a for a, _ in pairs], [b for _, b in pairs])


def class_scores(gold: Sequence[str], found: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and count of each class.

    >>> class_scores(["a", "b", "b"], ["a", "a", "b"])["a"]
    {'precision': 0.5, 'recall': 1.0, 'f1': 0.6666666666666666, 'count': 1}
    """
    scores = {}
    for name in sorted({*gold, *found}):
        right = sum(a == b == name for a, b in zip(gold, found, strict=True))
        count = sum(a == name for a in gold)
        scores[name] = {**_f1(right, sum(b == name for b in found), count), "count": count}
    return scores


def _f1(right: int, found: int, wanted: int) -> dict[str, float]:
    precision, recall = right / max(found, 1), right / max(wanted, 1)
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if right else 0.0,
    }
