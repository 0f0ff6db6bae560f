"""The simulated classifier: find the labels in a prompt, pick the one with most keyword hits.

It exists so that demonstrations look right. `KEYWORDS` has word prefixes for well-known labels, in
English, German, French and Spanish. Other labels match by their own words.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b

_CUE = r"(?:one of|labels?|categor(?:y|ies)|class(?:es)?|options?|topics?|into|either|as)\b"
_AFTER_COLON = re.compile(_CUE + r"[^:\n]{0,60}:[ \t]*([^\n.]{3,400})", re.I)
_IN_LIST = re.compile(_CUE + r"[^:\n]{0,60}:[ \t]*\n((?:[ \t]*[-*•][ \t]*[^\n]+\n?){2,50})", re.I)
_IN_SENTENCE = re.compile(
    _CUE + r"[ \t]+((?:[\w\"'`-]+(?:,[ \t]*(?:or[ \t]+|and[ \t]+)?|[ \t]+or[ \t]+|[ \t]+and["
    r" \t]+))+[\w\"'`-]+)",
    re.I,
)
_SEPARATOR = re.compile(r"\s*[,;|/]\s*(?:or\s+|and\s+)?|\s+or\s+|\s+and\s+", re.I)
_QUOTES = " \t\"'`*[](){}<>.-•"
_WORD = re.compile(r"\w+")

# Prefixes of words, without accents; a prefix marked with `*` counts double.
KEYWORDS: dict[str, str] = {
    "billing": (
        "*invoice *charged payment card pay *vat declin *bill price discount *levy reminder"
        " *transfer *bank monthly yearly subscri *rechnung *abgebucht umsatzst lastschrift buchung"
        " bezahl *facture *debit tva abonnement *factur *cobrado tarjeta nif pago"
    ),
    "technical": (
        "*crash *error *firmware wifi wi *pairing stuck *update offline alert battery blink *router"
        " cloud *record clip shows motion thermom disconn bug broken fail reinstall *verbind"
        " *fehler koppel bild kamera leds *plante *deconnect indique chauffage *conexion *alertas"
        " pila *pierde retraso *actualizacion"
    ),
    "account": (
        "*account *login *log *password *sign *locked merge *access guest *factor delete hand mail"
        " email recovery session employer flat *konto *passwort losch *compte *connecter reinit"
        " *supprimer vendu retirer *cuenta *contrasena *acceso *codigos verific"
    ),
    "shipping": (
        "*parcel *ship *deliver *arriv *customs *warehouse *package postcode neighb tracking boxes"
        " *crushed wet label address black white *paket *packstation *lieferschein unterwegs"
        " geliefert *colis *livre suivi *boite ecrasee devait *aduana *almacen *enviado etiqueta"
    ),
    "refund": (
        "*refund *money *return *cancel *back reimburs replacement *difference *zuruckges *storn"
        " *erstatt *ruckerst *gekundigt *rembours *renvoy *annuler *devol *devuelv *cancel reembols"
    ),
    "feedback": (
        "*great *nice *love *lovely *happy *wish please *bring thank *well *raise *cheerful"
        " *packaging dark mode widget setting *lob *schon *weiter *leider ubersicht merci *bienvenu"
        " *emballage *dommage mode sombre *enhorabuena *estaria *bonita letra guia hoping hope"
    ),
    "cancel": "*cancel *terminat *unsubscrib *kundig *storn *annul *resil *baja",
    "positive": (
        "*great *good *love *excellent *happy *perfect *thank *nice *well recommend amazing"
        " fantastic"
    ),
    "negative": (
        "*bad *terrible *awful *broken *hate *disappoint *worst *angry *never refund unacceptable"
        " slow"
    ),
    "urgent": "*urgent *immediately *asap *today *now *child emergency down safety",
    "spam": "*winner *prize *lottery *click *free offer bitcoin",
}
_ALIASES = {
    "payment": "billing",
    "invoice": "billing",
    "bug": "technical",
    "tech": "technical",
    "login": "account",
    "access": "account",
    "delivery": "shipping",
    "order": "shipping",
    "return": "refund",
    "complaint": "negative",
    "praise": "feedback",
    "suggestion": "feedback",
    "feature": "feedback",
    "cancellation": "cancel",
    "high": "urgent",
    "critical": "urgent",
}
_FALLBACKS = ("other", "general", "none", "neutral", "unknown", "normal", "medium", "misc")


@lru_cache(maxsize=256)
def labels_in(prompt: str) -> tuple[str, ...]:
    """The labels from which a prompt asks to choose; empty if it names none."""
    listed = _IN_LIST.search(prompt)
    if listed:
        return _labels(line.split(":")[0] for line in listed[1].splitlines())
    named = _AFTER_COLON.search(prompt) or _IN_SENTENCE.search(prompt)
    return _labels(_SEPARATOR.split(named[1])) if named else ()


def _labels(texts: Iterable[str]) -> tuple[str, ...]:
    cleaned = [text.strip(_QUOTES) for text in texts]
    labels = tuple(dict.fromkeys(label for label in cleaned if label))
    return (
        labels
        if 2 <= len(labels) <= 50
        and all(len(label) <= 40 and len(label.split()) <= 4 for label in labels)
        else ()
    )


def classify(text: str, labels: Sequence[str]) -> str:
    """Return the label that fits a text best.

    If none fits, a fallback such as `other`, or a label chosen by the text's hash.
    """
    index, lengths = _index(tuple(labels))
    found = {
        start
        for word in set(words_of(text))
        for length in lengths
        if (start := word[:length]) in index
    }
    scores = [0] * len(labels)
    for start in found:
        for label, weight in index[start]:
            scores[label] += weight
    best = max(scores)
    if best:
        return labels[scores.index(best)]
    fallback = next((label for label in labels if label.lower() in _FALLBACKS), None)
    return fallback or labels[blake2b(text.encode(), digest_size=2).digest()[0] % len(labels)]


def words_of(text: str) -> list[str]:
    """Lower-case words without accents."""
    lowered = text.lower()
    if not lowered.isascii():
        lowered = "".join(
            char
            for char in unicodedata.normalize("NFKD", lowered)
            if not unicodedata.combining(char)
        )
    return _WORD.findall(lowered)


@lru_cache(maxsize=256)
def _index(labels: tuple[str, ...]) -> tuple[dict[str, list[tuple[int, int]]], list[int]]:
    """Map prefixes of words to (index of the label, weight); also return the prefixes' lengths."""
    index: dict[str, list[tuple[int, int]]] = {}
    for number, label in enumerate(labels):
        for start, weight in _beginnings(label).items():
            index.setdefault(start, []).append((number, weight))
    return index, sorted({len(start) for start in index})


def _beginnings(label: str) -> dict[str, int]:
    words = words_of(label.replace("_", " "))
    known = [KEYWORDS[name] for word in words if (name := _ALIASES.get(word, word)) in KEYWORDS]
    starts = {
        start.lstrip("*"): 2 if start.startswith("*") else 1
        for line in known
        for start in line.split()
    }
    return starts | {word[: max(4, len(word) - 2)]: 2 for word in words}
