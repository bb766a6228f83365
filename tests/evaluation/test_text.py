"""Fluency and consistency against examples worked by hand."""

import math

import pytest

from factpatch.data.references import Tfidf
from factpatch.evaluation import text
from factpatch.evaluation.generation import Generation
from factpatch.facts import Fact


class WordOverlap:
    """Cosine of word counts, by definition."""

    def similarity(self, one, other):
        first, second = ({word: words.count(word) for word in words} for words in (one.split(), other.split()))
        dot = sum(count * second.get(word, 0) for word, count in first.items())
        lengths = (math.sqrt(sum(count**2 for count in counts.values())) for counts in (first, second))
        return dot / math.prod(lengths)


def test_words_keep_their_case_and_what_joins_their_parts():
    found = text.words('He said: "Don\'t buy 3.14 well-known U.S. cars, please!"')
    assert found == [
        "He", "said", ":", '"', "Don't", "buy", "3.14", "well-known", "U.S", ".", "cars", ",", "please", "!", '"',
    ]  # fmt: skip


def test_entropy_of_ngrams_in_bits():
    # Bigrams ab, ba, ab, ba: 1 bit. Trigrams aba, bab, aba: log2(3) - 2/3 bits.
    assert text.ngram_entropy("a b a b a", 2) == pytest.approx(1.0)
    assert text.ngram_entropy("a b a b a", 3) == pytest.approx(math.log2(3) - 2 / 3)
    # Five words that differ: four bigrams, each once.
    assert text.ngram_entropy("one two three four five", 2) == pytest.approx(2.0)


def test_repetition_and_texts_too_short_for_ngrams_have_no_entropy():
    assert text.ngram_entropy("no no no no no", 2) == 0.0
    assert text.ngram_entropy("one", 2) == 0.0
    assert text.ngram_entropy("", 2) == 0.0


def test_weighted_entropy_weighs_trigrams_twice():
    expected = (1.0 + 2 * (math.log2(3) - 2 / 3)) / 3
    assert text.weighted_entropy("a b a b a") == pytest.approx(expected)


def test_fluency_is_the_mean_over_texts_with_their_prompts_in_bits_times_100():
    varied, repeated = Generation("one two", " three four five"), Generation("no", " no no no")
    bits = (2.0 + 2 * math.log2(3)) / 3
    assert text.fluency([varied]) == pytest.approx(100 * bits)
    assert text.fluency([varied, repeated]) == pytest.approx(50 * bits)


def test_empty_generations_count_as_empty_and_not_as_fluent_or_repetitive():
    full, empty = Generation("one two", " three four five"), Generation("one two three", " \n ")
    assert text.fluency([full, empty]) == text.fluency([full])
    assert text.fluency([empty]) is None
    assert text.fluency([]) is None
    assert text.empty_texts([full, empty]) == 50.0
    assert text.empty_texts([]) is None
    assert text.consistency([empty], ["one two"], WordOverlap()) is None
    assert text.consistency([full, empty], ["one"], WordOverlap()) == text.consistency([full], ["one"], WordOverlap())


def test_consistency_compares_all_texts_with_all_references():
    generations = [Generation("a", " b"), Generation("a", " c")]
    # (a 2, b 1, c 1) and (a 1, b 2, d 1): 4 / (sqrt(6) sqrt(6)).
    assert text.consistency(generations, ["a b", "b d"], WordOverlap()) == pytest.approx(100 * 4 / 6)
    assert text.consistency(generations, ["x y"], WordOverlap()) == 0.0


def test_consistency_by_tf_idf_worked_by_hand():
    pytest.importorskip("sklearn")
    tfidf = Tfidf.fit(["rome paris", "rome vienna"])
    rome, other = 1.0, math.log(3 / 2) + 1  # "rome" is in both of two texts, the others in one
    expected = 2 * rome * rome / (math.hypot(2 * rome, other) * math.hypot(rome, other))
    generations = [Generation("Rome", " Paris"), Generation("Rome", " Berlin")]
    assert text.consistency(generations, ["Rome", "Vienna"], tfidf) == pytest.approx(100 * expected)
    assert text.consistency([Generation("Berlin", " Bonn")], ["Rome"], tfidf) == 0.0


@pytest.mark.parametrize("references", [None, []])
def test_consistency_without_references_is_missing_and_not_zero(references):
    assert text.consistency([Generation("a", " b")], references, WordOverlap()) is None


class Constant:
    def similarity(self, one, other):
        return 0.25


def test_the_metrics_of_texts_leave_missing_references_missing():
    facts = [Fact("{} is", "A", "b", id="a"), Fact("{} is", "C", "d", id="c")]
    texts = [[Generation("A is", " b, b and b"), Generation("A", "")], [Generation("C", " ")]]
    found = {
        row[:2]: row.value for row in text.text_metrics(facts, texts, [["reference"], None], Constant(), "greedy_")
    }
    assert found.keys() == {(fact, f"greedy_{name}") for fact in "ac" for name in text.TEXT_METRICS}
    assert found["a", "greedy_consistency"] == 25.0
    assert found["a", "greedy_empty_texts"] == 50.0
    assert found["c", "greedy_consistency"] is found["c", "greedy_fluency"] is None
    assert found["c", "greedy_empty_texts"] == 100.0
    assert ("a", "consistency", None) in text.text_metrics(facts, texts)
