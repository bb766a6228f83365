"""A fact's prompt as a question, by general rules of English grammar and a table of verbs and relation nouns.

A prompt is a subject phrase and a predicate that lacks its last words: "Ada Lovelace | works in the field of". A rule
looks at the predicate (a form of "to be", a modal verb or another verb; what ends it) and asks for what is missing.
What no rule covers gets no question: a wrong one would measure something else.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from factpatch.facts import Fact
from factpatch.support.joint import joint

_BE = ("is", "are", "was", "were")
_MODALS = ("can", "could", "may", "will", "must", "should")
_ADVERBS = (
    "originally|professionally|currently|now|also|still|first|primarily|mainly|formerly|previously|officially|initially|"
    "formally|once|best|usually|typically|generally|mostly|presently"
)
_PREPOSITIONS = "in|at|on|within|inside|near|from|for|to|with|of|by|after|as|into|under|against|about"
_NOT_PLACES = ("believe", "specialize", "major", "compete", "participate", "invest", "result", "excel", "succeed")
"""Verbs whose "in" asks for a thing."""
_CHANNELS = ("release", "air", "premiere", "debut", "broadcast", "show")
"""Verbs whose "on" asks for a channel."""
_KINDS = (
    "country|city|town|state|province|region|county|district|village|continent|language|religion|faith|position|"
    "title|rank|field|area|domain|discipline|subject|sport|instrument|genre|organization|company|league|team|club|"
    "party|label|university|college|school|religious order|currency|award|prize|channel|network|capital city|capital|"
    "planet|century|year|dynasty|family|genus|species|color|office|category|island|river|sea|ocean|constellation"
)
"""Nouns that say what kind of thing is missing: "plays the instrument" asks "Which instrument …?"."""
_PEOPLE = (
    "president king queen emperor minister leader founder author writer ceo cto cfo spouse wife husband mother father "
    "child son daughter director creator inventor owner mayor governor officer chairman chairperson chairwoman chair "
    "coach manager captain editor composer producer architect designer discoverer sibling brother sister head "
    "chancellor pope monarch ruler developer singer performer painter sculptor screenwriter lyricist employer teacher "
    "student successor predecessor commander boss partner secretary chief principal dean rector parent developer "
    "maker manufacturer"
)
"""Nouns that are asked for with "Who"."""
_OF = {
    "citizen": "Which country",
    "national": "Which country",
    "speaker": "Which language",
    "follower": "Which religion",
    "adherent": "Which religion",
    "player": "Which sport",
    "product": "Which company",
    "capital": "Which country",
    "native": "Which place",
    "resident": "Which place",
}
"""What "is a … of" asks for; of other nouns "What"."""
_OF_PEOPLE = (
    "born died passed took speaks spoke works worked plays played writes citizen citizenship speaker follower married "
    "educated graduated employed employment native lived lives expired succumbed life studied position title holds "
    "specializes performs performing religion won received attended"
)
"""Words of a predicate that only people can have; of other subjects, "What" is asked."""
_MADE = {
    "made": "made", "written": "wrote", "built": "built", "sung": "sang", "drawn": "drew", "begun": "began",
    "found": "found", "given": "gave", "taken": "took", "led": "led", "shot": "shot", "won": "won", "sold": "sold",
}  # fmt: skip
"""Participles that are not spelled like the past tense, or do not end in -ed."""
_STATES = ("owned", "employed", "governed", "ruled", "run", "headed", "represented", "used", "inspired")
"""Participles with "by" that say how things are: "is owned by" asks "Who is … owned by?"."""
_IRREGULAR = {
    "have": "has had", "be": "is was", "do": "does did", "take": "takes took", "find": "finds found",
    "lose": "loses lost", "hold": "holds held", "speak": "speaks spoke", "write": "writes wrote",
    "begin": "begins began", "win": "wins won", "sing": "sings sang", "make": "makes made",
    "teach": "teaches taught", "lead": "leads led", "run": "runs ran", "become": "becomes became",
    "grow": "grows grew", "go": "goes went", "come": "comes came", "lie": "lies lay", "get": "gets got",
    "give": "gives gave", "sell": "sells sold", "build": "builds built", "eat": "eats ate",
    "drive": "drives drove", "fight": "fights fought", "meet": "meets met", "leave": "leaves left",
    "fall": "falls fell", "wear": "wears wore", "drink": "drinks drank", "know": "knows knew",
    "understand": "understands understood", "see": "sees saw", "study": "studies studied",
    "marry": "marries married", "bury": "buries buried", "carry": "carries carried",
}  # fmt: skip
_REGULAR = (
    "accept accompany act adopt affiliate air aim approve apply attend attain belong broadcast borrow cite call cause "
    "celebrate change claim coach command compete compose conduct consist contain cost cover create debut declare "
    "depend depict design develop die direct discover earn edit employ end enjoy enter exhibit expire feature finish "
    "follow form found function graduate happen host identify include invent invest join kill land last "
    "like live locate love major manage measure move need occur occupy open operate orbit originate own paint "
    "participate pass perform play practice prefer premiere produce profess publish race reach receive record refer "
    "reign release relocate represent require reside result retire rule secede serve settle share show sign "
    "specialize start stand star succeed succumb support symbolize train translate travel use utilize visit wed weigh "
    "work worship"
)
"""Verbs whose past tense takes off only its -ed or -d; to others no -ed is taken off, as it may be -e or not."""


_LED = re.compile(r"(In|At|On|For|From) ")
_HELD = re.compile(r"((?:wh\w+|how|in which|on which|is|are|was|does|did) .*?\?)(?:\s.*)?", re.IGNORECASE)
_RELATIVE = re.compile(
    r"((?:The|An?) [^.!?:;,\n]+?) ((?:that|which|who|whom|where|in which) [^.!?:;\n]+) (is|are|was|were)"
)
_PARTICIPLES = ("born", "held", "spoken", "known", "set", "grown", "worn", "run")
_BELONGS = re.compile(r"(?:has|have|holds?|had|held) (?:an? |the )?(?:citizenship|nationality) (?:from|of|in)")


class _Verb(NamedTuple):
    base: str
    auxiliary: str


def _forms() -> dict[str, _Verb]:
    found: dict[str, _Verb] = {}
    for base, forms in _IRREGULAR.items():
        present, past = forms.split()
        found |= {present: _Verb(base, "does"), past: _Verb(base, "did"), base: _Verb(base, "do")}
    for base in _REGULAR.split():
        ends = base.endswith(("s", "sh", "ch", "x", "z", "o"))
        stem = base[:-1] + "i" if base.endswith("y") and base[-2] not in "aeiou" else base
        present = f"{stem}es" if ends or stem != base else f"{base}s"
        past = f"{base}d" if base.endswith("e") else f"{stem}ed"
        found |= {present: _Verb(base, "does"), base: _Verb(base, "do")}
        found.setdefault(past, _Verb(base, "did"))
    # "found" is the past of "find" in what prompts say: "found employment in". The others are met before "to be".
    return {**found, "found": _Verb("find", "did")}


_VERBS = _forms()
_PREDICATES = frozenset(form for form, verb in _VERBS.items() if verb.auxiliary != "do")


class _Clause(NamedTuple):
    """A prompt in two parts."""

    subject: str
    """The words that the predicate speaks of, as they stand within a sentence."""
    predicate: str
    """What follows, without its missing end."""
    about: str
    """A phrase that moves to the end of the question, such as "in Finland"."""
    date: bool
    """Whether the new object is a date: then "in" asks when."""


def written_question(fact: Fact) -> str | None:
    """Return a fact's prompt as a question; None where no rule tells how.

    Returns:
        For example "Where was Ada Lovelace born?" of the prompt "{} was born in". A prompt that holds its question,
        such as "What does {} play? They play", gives that.
    """
    if fact.place == "last":
        return None  # the rules need to know what the prompt is about
    before, after = fact.text[: fact.subject_start], fact.text[fact.subject_end + 1 :]
    before = before.lstrip()
    held = _HELD.fullmatch(fact.text.strip())
    if held:
        return held[1]
    about = _RELATIVE.fullmatch(fact.text)
    if about:
        who = "Who" if _is_person(about[1]) else "What"
        return f"{who} {about[3]} {about[1][0].lower()}{about[1][1:]} {about[2]}?"
    if not re.fullmatch(r"[^.!?:;\n]*", before) or re.search(r"[.!?:;\n]", after.rstrip(" :")):
        return None
    clause = _clause(before, fact.subject, after.rstrip(" :"), _is_date(fact.target_new))
    if clause is None:
        return None
    asked = next((words for rule in _RULES if (words := rule(clause)) is not None), None)
    if asked is None:
        return None
    return f"{' '.join([asked, clause.about]).strip()}?"


def negated_prompt(fact: Fact) -> str | None:
    """Return a fact's prompt with "not" at its verb; None where no rule tells how.

    Returns:
        For example "The capital of Italy is not" or "Ada Lovelace does not work in the field of".
    """
    after = fact.text[fact.subject_end + 1 :]
    # A question that was asked cannot be negated, nor an apposition, which has no verb: ", developed by".
    led = _LED.fullmatch(fact.text[: fact.subject_start])
    if "?" in fact.text or (not led and re.match(r"\s*,(?! (?:who|which|that|whose)\b)", after)):
        return None
    words = re.split(r"(\s+)", after)
    for place, word in enumerate(words):
        if word in (*_BE, *_MODALS):
            words[place] = "cannot" if word == "can" else f"{word} not"
        elif word in _PREDICATES and place > 0:
            words[place] = _VERBS[word].base
            adverb = place > 1 and re.fullmatch(_ADVERBS, words[place - 2])
            words.insert(place - 2 if adverb else place, f"{_VERBS[word].auxiliary} not ")
        else:
            continue
        return fact.text[: fact.subject_end + 1] + "".join(words)
    return None


def reversed_question(fact: Fact, target: str) -> str | None:
    """Return the question that an object of a fact answers with its subject; None where no rule tells how.

    Args:
        fact: The fact.
        target: The object that is given.

    Returns:
        For example "Whose mother tongue is English?" or "Who works in the field of physics?".
    """
    if fact.place == "last":
        return None
    before, after = fact.text[: fact.subject_start], fact.text[fact.subject_end + 1 :].rstrip(" :")
    if re.search(r"[.!?:;\n]", before + after):
        return None
    clause = _clause(before, fact.subject, after, False)
    if clause is None or clause.about:
        return None
    left, _, right = clause.subject.partition(fact.subject)
    held = re.fullmatch(r"(?:the |an? )?(.+) of (?:the )?", left)
    owned = re.fullmatch(r"['’]s? (.+)", right)
    verb = next(iter(_told(clause.predicate)), "")
    if verb not in (*_BE, *_MODALS) and verb not in _PREDICATES:
        return None
    if re.fullmatch(r"(?:is|are|was|were) (?:an?|the)(?: \w+)?", clause.predicate) and not (held or owned):
        return None  # "What is a bishop?" asks something else
    joined = f"{clause.predicate}{joint(clause.predicate)}{target}?"
    if held and not right:
        return f"Whose {held[1]} {joined}"
    if owned and not left:
        return f"Whose {owned[1]} {joined}"
    if right or (left not in ("", "the ") and not left.istitle()):
        return None
    return f"{'Who' if set(_OF_PEOPLE.split()) & set(clause.predicate.split()) else 'What'} {joined}"


def _is_date(target: str) -> bool:
    return re.search(r"\b\d{3,4}\b", target) is not None and re.fullmatch(r"[\w\s,.\-/]*", target) is not None


def _clause(before: str, subject: str, after: str, date: bool) -> _Clause | None:
    """Take a prompt apart; None if what stands before the subject is no part of a noun phrase, and no "In …,"."""
    within = _LED.fullmatch(before)
    if within and (rest := re.match(r"\s*,\s*", after)):
        return _led(f"{within[1].lower()} {subject}", after[rest.end() :], date)
    if before and not _is_phrase(before):
        return None
    subject = f"{_lowered(before)}{subject}"
    owned = re.match(r"(['’]s?) (.+)", after)
    if owned:
        # As much as stands before a verb: "'s life | ended in", "'s occupation | is", "'s capital |,".
        words = owned[2].rstrip(",").split()
        verb = next((at for at, word in enumerate(words) if at and (word in _BE or word in _PREDICATES)), len(words))
        return _Clause(f"{subject}{owned[1]} {' '.join(words[:verb])}", " ".join(words[verb:]) or "is", "", date)
    return _apart(subject, after, bool(before), date)


def _led(about: str, after: str, date: bool) -> _Clause | None:
    """A prompt that begins with "In …,": its own subject follows."""
    own = re.fullmatch(r"((?:the|an?) .+?) (is|are|was|were)", after)
    if own:
        return _Clause(own[1], own[2], about, date)
    people = re.fullmatch(r"(they|people|we) (.+)", after)
    return _Clause("people", people[2], about, date) if people else None


def _apart(subject: str, after: str, nominal: bool, date: bool) -> _Clause | None:
    """The subject and a predicate, from a relative clause or an apposition too."""
    relative = re.match(r",? (?:who|which|that) ", after)
    whose = re.match(r",? whose (.+?) (is|are|was|were)\b", after)
    if whose:
        return _Clause(f"{subject}'s {whose[1]}", after[whose.start(2) :], "", date)
    if relative:
        return _Clause(subject, after[relative.end() :], "", date)
    if not after.startswith(","):
        return _Clause(subject, after.strip(), "", date) if after.strip() else None
    words = after[1:].strip()
    first = words.partition(" ")[0]
    if first.endswith("ing") and (base := _of_gerund(first)):
        return _Clause(subject, f"{base}s{words[len(first) :]}", "", date)
    if first in ("in", "from", "at", "a", "an") or _is_participle(first):
        # What was made was made once; where a thing is, it is now.
        verb = "was" if _is_participle(first) and first not in ("located", "situated", "based") else "is"
        return _Clause(subject, f"{verb} {words}", "", date)
    noun = re.fullmatch(r"(\w+) of", words)
    return _Clause(subject, f"is a {words}", "", date) if noun and noun[1] in _OF and not nominal else None


def _is_phrase(before: str) -> bool:
    """Whether the words before the subject are a noun phrase that goes on with it, or belong to its name."""
    named = (
        rf"(?:the|an?) .+ (?:{_PREPOSITIONS}|behind|known as)|[a-z]+(?: [a-z]+)* (?:of|for)|the(?! [wt]h)(?: [a-z]+)?"
    )
    if re.fullmatch(rf"(?:{named})(?: the)?", before.strip(), re.IGNORECASE):
        return True
    words = before.split()
    return all(word[:1].isupper() for word in words) and words[:1] not in (["In"], ["At"], ["On"], ["By"], ["For"])


def _lowered(before: str) -> str:
    determined = re.match(r"(the|an?) ", before, re.IGNORECASE)
    if determined:
        return before[0].lower() + before[1:]
    common = re.fullmatch(r"[A-Za-z][a-z]+(?: [a-z]+)* (?:of|for) ", before)
    return f"the {before[0].lower()}{before[1:]}" if common else before


def _is_participle(word: str) -> bool:
    return word.endswith("ed") or word in _MADE or word in _PARTICIPLES


def _of_gerund(word: str) -> str | None:
    stem = word.removesuffix("ing")
    return next(
        (base for base in (stem, f"{stem}e", stem[:-1]) if base in _REGULAR.split() or base in _IRREGULAR), None
    )


def _nominal(clause: _Clause) -> str | None:
    """The X of S is; S's X is a: what is it, who is it or, before "in", where is it?"""
    found = re.fullmatch(
        rf"(is|are|was|were|has been)(?: (?:{_ADVERBS}))*(?: (in|at|located in|located at|based in|situated in))?"
        r"(?: (?:the|an?|called|known as|named|that of))?",
        clause.predicate,
    )
    if found is None or not _is_relation(clause):
        return None
    if found[1] == "has been":
        return f"What has {clause.subject} been"
    if found[2]:
        return f"{'When' if clause.date else 'Where'} {found[1]} {clause.subject}"
    return f"{'Who' if _is_person(clause.subject) else 'What'} {found[1]} {clause.subject}"


def _is_relation(clause: _Clause) -> bool:
    """Whether the subject phrase is more than a name."""
    return bool(clause.about) or re.search(r"^(?:the|an?) \S+ .|['’]s? [a-z]", clause.subject) is not None


def _is_person(phrase: str) -> bool:
    owned = re.search(r"['’]s? ([^'’]+)$", phrase)
    head = owned[1] if owned else re.split(rf" (?:{_PREPOSITIONS}) ", phrase)[0]
    return head.split()[-1].casefold() in _PEOPLE.split()


def _kind(clause: _Clause) -> str | None:
    """… works in the field of; … speaks the language: which field, which language?"""
    found = re.fullmatch(
        rf"(?P<verb>.+?)(?: (?P<preposition>{_PREPOSITIONS}))?"
        rf" (?:the|an?|as) (?P<kind>(?:\w+ )?(?:{_KINDS}))(?: of| called| known as| from)?",
        clause.predicate,
    )
    if found is None:
        return None
    kind, preposition = found["kind"], found["preposition"]
    kind = (
        kind if re.fullmatch(_KINDS, kind) or kind.split()[0] in ("official", "native", "capital") else kind.split()[-1]
    )
    ordered = _ordered(clause.subject, found["verb"])
    if ordered is None or (found["verb"] in _BE and preposition is None):
        return None
    if preposition in ("in", "on", "at", "from"):
        return f"{preposition.capitalize()} which {kind} {ordered}"
    return f"Which {kind} {ordered}{f' {preposition}' if preposition else ''}"


def _told(words: str) -> list[str]:
    """The words without adverbs."""
    return [word for word in words.split() if not re.fullmatch(_ADVERBS, word)]


def _ordered(subject: str, verb: str) -> str | None:
    """The verb in the order of a question: "does Ada work", "was Ada born", "can Ada be found"."""
    words = _told(verb)
    if not words:
        return None
    first, rest = words[0], words[1:]
    perfect = first in ("has", "had") and rest and (rest[0] == "been" or _is_participle(rest[0]))
    if first in _BE or perfect or (first in _MODALS and rest):
        return " ".join([first, subject, *rest])
    form = _VERBS.get(first)
    if form is None:
        return None
    auxiliary = "do" if subject == "people" and form.auxiliary != "did" else form.auxiliary
    return " ".join([auxiliary, subject, form.base, *rest])


def _origin(clause: _Clause) -> str | None:
    """… has a citizenship from; … is a citizen of: which country?"""
    if _BELONGS.fullmatch(clause.predicate):
        return f"Which country is {clause.subject} a citizen of"
    found = re.fullmatch(r"(is|are|was|were) (?:(an?|the) )?((?:\w+ )*?(\w+)) (of|to|for)(?: the)?", clause.predicate)
    if found is None or _is_participle(found[4]):
        return None
    bare = found[2] is None and (found[4] not in _OF or found[5] == "to")  # "is native to", but "is follower of"
    article = "" if bare else f" {found[2] or 'a'}"
    return f"{_OF.get(found[4], 'What')} {found[1]} {clause.subject}{article} {found[3]} {found[5]}"


def _maker(clause: _Clause) -> str | None:
    """… was created by; a product developed by: who created it?"""
    found = re.fullmatch(rf"(is|are|was|were)(?: (?:{_ADVERBS}))*(?: an? \w+)? (\w+) by(?: the)?", clause.predicate)
    if found is None or not _is_participle(found[2]):
        return None
    if found[2] in _STATES:
        return f"Who {found[1]} {clause.subject} {found[2]} by"
    return f"Who {_MADE.get(found[2], found[2])} {clause.subject}"


def _place(clause: _Clause) -> str | None:
    """… was born in; … works at; … premiered on: where, when, on which channel?"""
    found = re.fullmatch(
        r"(?:(?P<verb>.+?) )?(?P<preposition>in|at|on|within|inside|near|from)(?: the)?", clause.predicate
    )
    if found is None or not found["verb"]:
        return None
    verb, preposition = found["verb"], found["preposition"]
    ordered = _ordered(clause.subject, verb)
    last = _told(verb)[-1:]
    base = _base(last[0]) if last else ""
    if ordered is None:
        return None
    if clause.date:
        return f"When {ordered}" if preposition in ("in", "on", "at") else None
    if preposition == "on":
        return f"On which channel {ordered}" if base in _CHANNELS else f"What {ordered} on"
    if base in ("write", "speak"):
        return f"In which language {ordered}" if preposition == "in" else None
    if base in _NOT_PLACES:
        return f"What {ordered} {preposition}"
    return f"Where {ordered}{' from' if preposition == 'from' else ''}"


def _base(word: str) -> str:
    if word in ("written", "spoken"):
        return {"written": "write", "spoken": "speak"}[word]
    return _VERBS[word].base if word in _VERBS else word


def _rest(clause: _Clause) -> str | None:
    """… speaks; … works for; … is affiliated with; … is known for playing: a verb with or without a preposition."""
    found = re.fullmatch(rf"(.+?)(?: ((?:{_PREPOSITIONS})(?: \w+ing)?))?(?: (?:the|an?))?", clause.predicate)
    if found is None or found[1] in _BE:
        return None
    ordered = _ordered(clause.subject, found[1])
    words = found[1].split()
    if ordered is None or (words[0] in _BE and len(words) > 1 and not any(map(_is_participle, words[1:]))):
        return None
    if words[-1] in ("a", "an", "the") or (words[0] in _VERBS and len(words) > 1 and found[2] is None):
        return None
    language = _base(words[-1]) in ("speak", "understand") and found[2] is None
    who = (found[2] == "for" and _base(words[-1]) == "work") or (
        found[2] == "to" and words[-1] in ("married", "engaged")
    )
    asking = "Which language" if language else "Who" if who else "What"
    return f"{asking} {ordered}{f' {found[2]}' if found[2] else ''}"


_RULES = (_nominal, _maker, _kind, _origin, _place, _rest)
"""The first that applies counts: from the most particular to the most general."""
