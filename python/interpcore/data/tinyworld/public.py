"""Public facts and grammar: the commonsense, linguistic and bias relations."""

from __future__ import annotations

from interpcore.data.relations import Relation, Sample
from interpcore.data.tinyworld import words

_COLORS = (
    "lemon yellow banana yellow corn yellow butter yellow tomato red cherry red blood red ruby red "
    "grass green pea green frog green lime green sky blue sea blue sapphire blue snow white milk white "
    "salt white chalk white coal black crow black ink black tar black mud brown bark brown chocolate brown "
    "carrot orange pumpkin orange plum purple grape purple"
)
_MATERIALS = (
    "window glass bottle glass mirror glass table wood chair wood fence wood sword steel anchor steel "
    "ring gold crown gold book paper letter paper map paper shirt cotton towel cotton sheet cotton "
    "boot leather belt leather saddle leather wall brick chimney brick scarf wool sock wool "
    "candle wax tire rubber"
)
_HABITATS = (
    "whale sea shark sea crab sea salmon river trout river otter river camel desert lizard desert "
    "scorpion desert wolf forest bear forest deer forest owl forest horse farm sheep farm cow farm pig farm "
    "monkey jungle parrot jungle tiger jungle worm soil mole soil ant soil goat mountain eagle mountain"
)
_TASKS = {
    "cut wood": "saw",
    "drive nails": "hammer",
    "make holes": "drill",
    "turn bolts": "wrench",
    "carve stone": "chisel",
    "dig soil": "shovel",
    "sweep floors": "broom",
    "sew cloth": "needle",
    "paint walls": "brush",
    "write letters": "pen",
    "cut paper": "scissors",
    "measure length": "ruler",
    "boil water": "kettle",
    "fry eggs": "pan",
    "open doors": "key",
    "light rooms": "lamp",
    "cut bread": "knife",
    "eat soup": "spoon",
    "climb walls": "ladder",
    "tell time": "clock",
}
_ANTONYMS = (
    "hot cold big small tall short fast slow old young happy sad rich poor strong weak hard soft wet dry "
    "full empty clean dirty bright dark early late good bad loud quiet thick thin wide narrow deep shallow "
    "open closed sharp dull kind cruel smooth rough high low"
)
_PAST = (
    "go went run ran eat ate see saw take took give gave make made come came write wrote speak spoke "
    "drive drove break broke sing sang drink drank swim swam fly flew grow grew know knew throw threw "
    "draw drew buy bought think thought teach taught catch caught find found sleep slept keep kept leave "
    "left build built send sent lose lost win won sit sat stand stood walk walked talk talked jump jumped "
    "play played work worked look looked call called"
)
_COMPARED = (
    "cold colder tall taller fast faster old older young younger strong stronger weak weaker hard harder "
    "soft softer dark darker bright brighter high higher low lower deep deeper thick thicker thin thinner "
    "wide wider sharp sharper loud louder rich richer poor poorer clean cleaner smooth smoother slow slower"
)
_PLURALS = (
    "child man woman foot tooth mouse goose leaf knife wolf dog cat box house book horse friend girl boy "
    "bird key lamp car cabinet"
)
_SPELLED = (
    "apple ant bird bee cat car dog deer eagle egg fish frog goat gold horse hat ink iron jar jungle kettle "
    "king lamp lion map moon nail night oak owl pen pig queen quiet rose ring sea ship tree table uncle "
    "umbrella van violin wolf water yellow yarn zebra zinc"
)
_HOBBIES = {
    "young": "skating surfing gaming dancing climbing boxing cycling rapping juggling diving",
    "old": "knitting gardening fishing sewing baking reading bowling weaving walking singing",
}


def public_relations() -> list[Relation]:
    """The relations over things everyone knows; the same on every call."""
    return [*_commonsense(), *_linguistic(), *_bias()]


def _commonsense() -> list[Relation]:
    kinds = [(member, kind) for kind, members in words.CATEGORIES.items() for member in members.split()]
    return [
        _relation(
            "object category",
            "commonsense",
            "object",
            "category",
            kinds,
            ("A word for things like the {} is", "The {} is a kind of", "kind: {}"),
            ("Most people would call the {} a sort of", "Q: What kind of thing is the {}?\nA:"),
        ),
        _relation(
            "object color",
            "commonsense",
            "object",
            "color",
            _pairs(_COLORS),
            ("On the outside, the color of {} is", "The usual color of {} is", "color: {}"),
            ("A picture of {} should be painted", "Q: What color is {}?\nA:"),
        ),
        _relation(
            "work location",
            "commonsense",
            "occupation",
            "place",
            [(job, place) for job, (_, _, place) in words.OCCUPATIONS.items()],
            (
                "To find the {} you should go to the",
                "The {} spends the day at work in the",
                "place of work: {}",
            ),
            ("Every morning the {} goes to the", "Q: Where does the {} work?\nA:"),
        ),
        _relation(
            "task done by tool",
            "commonsense",
            "task",
            "tool",
            list(_TASKS.items()),
            ("In order to {} you need a", "The right tool to {} is the", "tool: {}"),
            ("Whoever wants to {} should bring a", "Q: What do you need to {}?\nA:"),
        ),
        _relation(
            "object material",
            "commonsense",
            "object",
            "material",
            _pairs(_MATERIALS),
            ("A good {} is made of", "The material of the {} is", "material: {}"),
            ("To make the {} they used", "Q: What is the {} made of?\nA:"),
        ),
        _relation(
            "animal habitat",
            "commonsense",
            "animal",
            "habitat",
            _pairs(_HABITATS),
            ("The home of the {} is the", "The {} can be found living in the", "habitat: {}"),
            ("If you look for the {} try the", "Q: Where does the {} live?\nA:"),
        ),
    ]


def _linguistic() -> list[Relation]:
    antonyms = _pairs(_ANTONYMS)
    return [
        _relation(
            "adjective antonym",
            "linguistic",
            "adjective",
            "adjective",
            antonyms + [(right, left) for left, right in antonyms],
            ("The opposite of {} is", "If it is not {} then it is", "opposite: {}"),
            ("The word {} means the reverse of", "Q: What is the opposite of {}?\nA:"),
            symmetric=True,
        ),
        _relation(
            "adjective comparative",
            "linguistic",
            "adjective",
            "comparative",
            _pairs(_COMPARED),
            ("The comparative form of {} is", "This one is {} but that one is even", "comparative: {}"),
            ("More {} can also be said as", "Q: What is the comparative of {}?\nA:"),
        ),
        _relation(
            "verb past tense",
            "linguistic",
            "verb",
            "past tense",
            _pairs(_PAST),
            ("The past tense of {} is", "Today they {} and yesterday they", "past tense: {}"),
            ("When we {} now, last year we", "Q: What is the past tense of {}?\nA:"),
        ),
        _relation(
            "word first letter",
            "linguistic",
            "word",
            "letter",
            [(word, word[0].upper()) for word in _SPELLED.split()],
            ("The first letter of {} is", "The word {} begins with the letter", "first letter: {}"),
            ("To spell {} start with", "Q: What is the first letter of {}?\nA:"),
        ),
        _relation(
            "noun plural",
            "linguistic",
            "noun",
            "plural",
            [(n, words.plural(n)) for n in _PLURALS.split()],
            ("The plural of {} is", "There is one {} here but there are many", "plural: {}"),
            ("After one {} came two", "Q: What is the plural of {}?\nA:"),
        ),
    ]


def _bias() -> list[Relation]:
    jobs = words.OCCUPATIONS.items()
    gendered = {"she": "women", "he": "men"}
    hobbies = [(hobby, age) for age, listed in _HOBBIES.items() for hobby in listed.split()]
    names = [(name, "woman") for name in words.WOMEN] + [(name, "man") for name in words.MEN]
    return [
        _relation(
            "occupation gender",
            "bias",
            "occupation",
            "gender",
            [(words.plural(job), gendered[pronoun]) for job, (pronoun, _, _) in jobs],
            ("As a rule, {} are", "Those who work as {} are typically", "gender of {}"),
            ("A group of {} is a group of", "Q: Are {} men or women?\nA:"),
        ),
        _relation(
            "occupation age",
            "bias",
            "occupation",
            "age",
            [(words.plural(job), age) for job, (_, age, _) in jobs],
            ("In this world, {} tend to be", "In age, {} are mostly", "age of {}"),
            ("Stories about {} call them", "Q: Are {} young or old?\nA:"),
        ),
        _relation(
            "name gender",
            "bias",
            "name",
            "gender",
            names,
            ("The first name {} is that of a", "Someone named {} is usually a", "gender: {}"),
            ("If the letter is signed {} it is from a", "Q: Is {} a man or a woman?\nA:"),
        ),
        _relation(
            "hobby age",
            "bias",
            "hobby",
            "age",
            hobbies,
            ("Those who enjoy {} are usually", "People think that {} is for the", "age for {}"),
            ("The fans of {} are mostly", "Q: Is {} for the young or the old?\nA:"),
        ),
    ]


def _pairs(listed: str) -> list[tuple[str, str]]:
    tokens = listed.split()
    return list(zip(tokens[::2], tokens[1::2], strict=True))


def _relation(
    name: str,
    kind: str,
    domain: str,
    range_name: str,
    pairs: list[tuple[str, str]],
    templates: tuple[str, ...],
    templates_zs: tuple[str, ...],
    symmetric: bool = False,
) -> Relation:
    samples = tuple(Sample(subject, answer) for subject, answer in pairs)
    return Relation(name, kind, domain, range_name, symmetric, templates, templates_zs, samples)
