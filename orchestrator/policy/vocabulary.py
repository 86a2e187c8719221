"""The closed words of labels, and one table that maps each to the standards it comes from.

A category is sensitive when the strictest of the standards calls it so. `unknown` is a member of every set: a set that
holds it may hold anything, which is the worst.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

UNKNOWN: Final = "unknown"
"""As a member of a set: what else is in it is not known."""

GB_45574: Final = "GB/T 45574-2025"
GB_43697: Final = "GB/T 43697-2024"
GDPR: Final = "Regulation (EU) 2016/679"
DSP: Final = "28 CFR part 202"
PIPL: Final = "PIPL"
ORDER_16: Final = "CAC Order 16 (2024)"


class Category(Enum):
    """What kind of personal data a payload holds."""

    CONTACT = "contact"
    ACCOUNT = "account"
    DEVICE = "device"
    BEHAVIOUR = "behaviour"
    WORK = "work"
    IDENTIFIERS = "identifiers"
    BIOMETRIC = "biometric"
    GENETIC = "genetic"
    OMIC = "omic"
    HEALTH = "health"
    FINANCIAL = "financial"
    LOCATION = "location"
    RELIGION = "religion"
    POLITICAL = "political"
    ETHNICITY = "ethnicity"
    UNION = "union"
    SEX_LIFE = "sex_life"
    CRIMINAL = "criminal"
    IDENTITY = "identity"
    MINOR = "minor"
    GOVERNMENT = "government"
    OTHER_SENSITIVE = "other_sensitive"


class Purpose(Enum):
    """What a payload is used for. Grants are for inference and embedding unless they name another."""

    INFERENCE = "inference"
    EMBEDDING = "embedding"
    FINETUNE = "finetune"
    EVALUATION = "evaluation"
    SAFETY_REVIEW = "safety_review"
    BILLING = "billing"
    DEBUG = "debug"
    SECURITY = "security"


class Asset(Enum):
    """What moves. Grants are for payloads unless they name another."""

    PAYLOAD = "payload"
    KV_CACHE = "kv_cache"
    WEIGHTS = "weights"
    ADAPTER = "adapter"
    TOKENIZER = "tokenizer"
    TRAINING_CODE = "training_code"
    TELEMETRY = "telemetry"
    AUDIT = "audit"
    BILLING = "billing"


@dataclass(frozen=True, slots=True)
class Word:
    """One value of the vocabulary, for people."""

    key: str
    value: str
    meaning: str
    standards: tuple[tuple[str, str], ...]
    """(instrument, article or section)."""
    sensitive: bool = False
    """Of a category: whether it makes a payload sensitive."""


_S = True
_CATEGORY_ROWS: tuple[tuple[Category, str, bool, tuple[tuple[str, str], ...]], ...] = (
    (Category.CONTACT, "names, addresses, telephone numbers", False, ((GDPR, "art. 4(1)"), (PIPL, "art. 4"))),
    (Category.ACCOUNT, "accounts and profiles of a person", False, ((GDPR, "art. 4(1)"), (PIPL, "art. 4"))),
    (Category.DEVICE, "identifiers of a person's devices", False, ((GDPR, "art. 4(1)"), (DSP, "202.212"))),
    (Category.BEHAVIOUR, "what a person did with a service", False, ((GDPR, "art. 4(1)"), (PIPL, "art. 4"))),
    (Category.WORK, "employment and education", False, ((GDPR, "art. 88"), (PIPL, "art. 4"))),
    (Category.IDENTIFIERS, "covered personal identifiers, linked to each other", False, ((DSP, "202.205(f)"),)),
    (
        Category.BIOMETRIC,
        "body measures that identify a person",
        _S,
        ((GB_45574, "6.1"), (GDPR, "art. 9(1)"), (DSP, "202.205(b)")),
    ),
    (Category.GENETIC, "human genomic data", _S, ((GDPR, "art. 9(1)"), (DSP, "202.205(a), genomic"))),
    (Category.OMIC, "epigenomic, proteomic and transcriptomic data", _S, ((DSP, "202.205(a), other 'omic"),)),
    (Category.HEALTH, "health", _S, ((GB_45574, "6.4"), (GDPR, "art. 9(1)"), (DSP, "202.205(d)"))),
    (Category.FINANCIAL, "financial accounts", _S, ((GB_45574, "6.5"), (DSP, "202.205(e)"))),
    (Category.LOCATION, "precise location and tracks", _S, ((GB_45574, "6.6"), (DSP, "202.205(c)"))),
    (Category.RELIGION, "religious or philosophical beliefs", _S, ((GB_45574, "6.2"), (GDPR, "art. 9(1)"))),
    (Category.POLITICAL, "political opinions", _S, ((GDPR, "art. 9(1)"),)),
    (Category.ETHNICITY, "racial or ethnic origin", _S, ((GDPR, "art. 9(1)"),)),
    (Category.UNION, "trade union membership", _S, ((GDPR, "art. 9(1)"),)),
    (Category.SEX_LIFE, "sex life or sexual orientation", _S, ((GDPR, "art. 9(1)"),)),
    (Category.CRIMINAL, "criminal convictions and offences", _S, ((GDPR, "art. 10"),)),
    (Category.IDENTITY, "specific identity", _S, ((GB_45574, "6.3"),)),
    (Category.MINOR, "data of children under 14", _S, ((GB_45574, "6.7"), (PIPL, "art. 28"))),
    (Category.GOVERNMENT, "government-related data", _S, ((DSP, "202.222"),)),
    (Category.OTHER_SENSITIVE, "other sensitive personal data", _S, ((GB_45574, "6.8"), (PIPL, "art. 28"))),
)

SENSITIVE: Final = frozenset(category.value for category, _, sensitive, _ in _CATEGORY_ROWS if sensitive)
"""Categories that make a payload sensitive."""

_AXIS_WORDS: tuple[Word, ...] = (
    Word("personal", "none", "about no natural person", ((GDPR, "art. 4(1)"), (PIPL, "art. 4"))),
    Word("personal", "personal", "about a natural person", ((GDPR, "art. 4(1)"), (PIPL, "art. 4"))),
    Word("personal", "sensitive", "of a special or sensitive category", ((GDPR, "art. 9"), (PIPL, "art. 28"))),
    Word("grade", "public", "published", ((GB_43697, "general data, annex H"),)),
    Word("grade", "general", "general data", ((GB_43697, "general data"),)),
    Word("grade", "important", "important data", ((GB_43697, "important data"), ("Data Security Law", "art. 21"))),
    Word("grade", "core", "core data", ((GB_43697, "core data"), ("Data Security Law", "art. 21"))),
    Word("domestic", "no", "no data of the pool's country was introduced", ((ORDER_16, "art. 4"),)),
    Word("domestic", "yes", "data of the pool's country was introduced", ((ORDER_16, "art. 4"),)),
    Word("clean", "anonymised", "cannot be linked to a person again", ((GDPR, "recital 26"), (PIPL, "art. 73(4)"))),
    Word("clean", "deidentified", "identifiers removed", ((DSP, "202.206"), (PIPL, "art. 73(3)"))),
    Word("clean", "pseudonymised", "identifiers replaced", ((GDPR, "art. 4(5)"), (DSP, "202.206"))),
    Word("clean", "tokenised", "token ids or embeddings: as good as the text", ((DSP, "202.206"),)),
    Word("clean", "raw", "as collected", ()),
)

WORDS: tuple[Word, ...] = (
    *_AXIS_WORDS,
    *(
        Word("categories", category.value, meaning, standards, sensitive)
        for category, meaning, sensitive, standards in _CATEGORY_ROWS
    ),
    *(Word("purpose", purpose.value, purpose.value.replace("_", " "), ()) for purpose in Purpose),
    *(Word("asset", asset.value, asset.value.replace("_", " "), ()) for asset in Asset),
)
"""Every value with its meaning and its standards. Each axis and set has `unknown` besides."""
