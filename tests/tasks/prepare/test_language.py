import pycld2
import pytest
from pydantic import ValidationError

from schemas.preparation_config import LANGUAGES, LanguageConfig
from tasks.prepare.language import LanguageStep, language_shares

TEXTS = {
    "en": "The mill stands at the end of the valley, and the water that drives it comes down from the hills.",
    "de": "Die Mühle steht am Ende des Tals, und das Wasser, das sie treibt, kommt von den Hügeln herab.",
    "fr": "Le moulin se trouve au bout de la vallée, et l'eau qui le fait tourner descend des collines.",
    "es": "El molino está al final del valle, y el agua que lo mueve baja de las colinas por un canal.",
    "ru": "Мельница стоит в конце долины, и вода, которая её вращает, стекает с холмов по длинному каналу.",
    "zh": "水磨坊在山谷的尽头，水从山上沿着一条长长的石渠流下来推动水轮。没有人知道是谁修建了它。",
    "ja": "水車小屋は谷の奥にあり、山から長い石の水路を通って流れてくる水がそれを動かしている。",
    "ko": "물레방아는 골짜기 끝에 있고, 그것을 돌리는 물은 언덕에서 긴 돌 수로를 따라 내려온다.",
    "ar": "تقع الطاحونة في نهاية الوادي، والماء الذي يحركها ينزل من التلال عبر قناة حجرية طويلة.",
    "hi": "चक्की घाटी के छोर पर खड़ी है, और उसे चलाने वाला पानी पहाड़ियों से एक लंबी नाली में नीचे आता है।",
    "he": "הטחנה עומדת בקצה העמק, והמים המניעים אותה יורדים מן הגבעות בתעלת אבן ארוכה.",
    "no": "Møllen står i enden av dalen, og vannet som driver den kommer ned fra åsene i en lang kanal av stein. Ingen vet hvem som har bygget den.",
}


@pytest.mark.parametrize("code", TEXTS)
def test_each_language_is_recognised_by_its_current_code(code: str) -> None:
    assert next(iter(language_shares(TEXTS[code]))) == code


def test_what_is_kept_stays_and_the_rest_is_refused_with_what_was_found() -> None:
    outcomes = dict(zip(TEXTS, LanguageStep(LanguageConfig(keep=("en", "zh"))).apply(list(TEXTS.values())), strict=True))
    assert {code for code, outcome in outcomes.items() if outcome.text is not None} == {"en", "zh"}
    assert outcomes["de"].reason == "language-other"
    assert outcomes["de"].detail == "de 100%; at least 65% must be en, zh"


def test_shares_of_kept_languages_are_added_up() -> None:
    text = TEXTS["en"] + "\n" + TEXTS["zh"]
    shares = language_shares(text)
    assert set(shares) == {"en", "zh"}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert LanguageStep(LanguageConfig(keep=("en", "zh"))).apply([text])[0].text == text
    assert LanguageStep(LanguageConfig(keep=("en",), min_score=0.9)).apply([text])[0].reason == "language-other"


def test_old_and_general_codes_of_a_language_mean_the_same() -> None:
    assert LanguageStep(LanguageConfig(keep=("nb",))).apply([TEXTS["no"]])[0].text == TEXTS["no"]


@pytest.mark.parametrize("text", ["", "12345 67890 !!!", "\x01\x02"])
def test_what_is_not_recognised_is_refused_whatever_is_kept(text: str) -> None:
    (outcome,) = LanguageStep(LanguageConfig(keep=("en",), min_score=0.0)).apply([text])
    assert (outcome.text, outcome.reason) == (None, "language-unknown")


def test_characters_that_cld2_cannot_read_are_no_obstacle() -> None:
    for char in "\x00\x1b\x7f\x85\ufffe\uffff\ufdd0\U0001ffff\ud800":
        assert next(iter(language_shares(char.join(TEXTS["en"].split(" ")[:12]) + TEXTS["en"]))) == "en"


def test_the_recipe_names_languages_that_can_be_recognised() -> None:
    names = dict(pycld2.LANGUAGES)
    known = {names[name].partition("-")[0] for name in pycld2.DETECTED_LANGUAGES} - {"xx", "iw", "jw"}
    assert known | {"he", "jv", "nb"} == LANGUAGES
    with pytest.raises(ValidationError, match="no language that can be recognised: qq"):
        LanguageConfig(keep=("en", "qq"))
