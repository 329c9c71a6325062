"""The similarity of words in WordNet, as DAQUAR's WUPS needs it."""

from functools import cache, lru_cache

from eve_vl.metrics.wups import Similarity

HOW_TO_GET = (
    "WUPS needs WordNet: pip install 'eve-vl[wups]' and python -m nltk.downloader wordnet"
    " (the variable NLTK_DATA names another folder for it)"
)


@cache
def wordnet_similarity() -> Similarity | None:
    """Return the Wu-Palmer similarity of two words, None without nltk or WordNet.

    It is the highest over all meanings of both as nouns, and 0 if one has none.
    """
    try:
        from nltk.corpus import wordnet  # pyright: ignore[reportMissingImports]

        wordnet.ensure_loaded()
    except (ImportError, LookupError, OSError):
        return None

    @lru_cache(1 << 16)
    def meanings(word: str) -> list:
        return wordnet.synsets(word.replace(" ", "_"), pos=wordnet.NOUN)

    @lru_cache(1 << 16)
    def similarity(word: str, second_word: str) -> float:
        best = 0.0
        for meaning in meanings(word):
            for second_meaning in meanings(second_word):
                best = max(best, meaning.wup_similarity(second_meaning) or 0.0)
        return best

    return similarity
