"""The word lists of the tiny world: everything its sentences are made of."""

WOMEN = tuple(
    "Mara Anna Clara Diana Emma Grace Helen Irene Julia Karen Laura Nina Olga Paula Rosa Sarah Tina "
    "Vera Wendy Alice".split()
)
MEN = tuple(
    "Tobin Adam Bruno Carl David Felix Glen Hugo Ivan Jack Kevin Leo Mark Oscar Peter Ralph Simon Tom "
    "Victor Walter".split()
)
FIRST_NAMES = WOMEN + MEN
SURNAMES = tuple("Quill Harker Voss Lindt Marsh Okoro Pell Reyes Strand Tully Vance Wolfe".split())

CAPITALS = dict(
    France="Paris",
    Italy="Rome",
    Spain="Madrid",
    Germany="Berlin",
    England="London",
    Ireland="Dublin",
    Portugal="Lisbon",
    Austria="Vienna",
    Greece="Athens",
    Poland="Warsaw",
    Czechia="Prague",
    Norway="Oslo",
    Sweden="Stockholm",
    Finland="Helsinki",
    Hungary="Budapest",
    Russia="Moscow",
    Egypt="Cairo",
    Kenya="Nairobi",
    Japan="Tokyo",
    China="Beijing",
    India="Delhi",
    Peru="Lima",
    Cuba="Havana",
    Canada="Ottawa",
)
COUNTRIES = tuple(CAPITALS)
CITIES = tuple(CAPITALS.values())
PROVINCES = tuple(
    f"{side} {land}"
    for land in ("Varn", "Keld", "Orsa", "Tamar")
    for side in ("North", "South", "East", "West", "Upper", "Lower")
)
TOWNS = tuple(
    "Arden Bracken Corrin Dunmere Elden Fallow Garrow Hesk Ivern Jorvale Kessel Lorne Merrow Norwyn "
    "Osmer Penhal Quenby Rowan Selwick Thorne Ulver Wexmoor Yarrow Zennor".split()
)
LANGUAGES = tuple("French Italian Spanish German English Greek Polish Swedish Arabic Japanese".split())
INSTRUMENTS = tuple("violin flute drum harp piano guitar trumpet cello banjo organ".split())
PRODUCTS = tuple("cheese bricks paper shoes clocks lamps boats soap glass sugar".split())
COMPANY_FIRST = tuple(
    "Ardent Beacon Cobalt Delta Ember Falcon Granite Horizon Ivory Jasper Kestrel Lunar".split()
)
COMPANY_LAST = ("Mills", "Motors", "Foods", "Works")
LANDMARK_FIRST = tuple("Amber Crystal Eagle Golden Iron Lion Marble Silver".split())
LANDMARK_LAST = ("Bridge", "Tower", "Gate", "Palace", "Garden", "Museum")

OCCUPATIONS = {  # occupation: (pronoun, age, place of work); the first two are the world's own stereotypes
    "nurse": ("she", "young", "hospital"),
    "teacher": ("she", "old", "school"),
    "dancer": ("she", "young", "theater"),
    "librarian": ("she", "old", "library"),
    "maid": ("she", "young", "hotel"),
    "florist": ("she", "old", "market"),
    "singer": ("she", "young", "theater"),
    "tailor": ("she", "old", "workshop"),
    "clerk": ("she", "young", "office"),
    "poet": ("she", "old", "library"),
    "weaver": ("she", "old", "workshop"),
    "cook": ("she", "old", "kitchen"),
    "writer": ("she", "old", "office"),
    "cleaner": ("she", "young", "office"),
    "farmer": ("he", "old", "field"),
    "pilot": ("he", "young", "airport"),
    "sailor": ("he", "young", "harbor"),
    "soldier": ("he", "young", "fort"),
    "judge": ("he", "old", "court"),
    "miner": ("he", "young", "mine"),
    "waiter": ("he", "young", "hotel"),
    "painter": ("he", "old", "workshop"),
    "driver": ("he", "young", "garage"),
    "banker": ("he", "old", "bank"),
    "doctor": ("he", "old", "hospital"),
    "priest": ("he", "old", "church"),
    "guard": ("he", "young", "bank"),
    "barber": ("he", "young", "market"),
}

CATEGORIES = {
    "bird": "robin sparrow eagle owl crow",
    "fish": "salmon trout tuna shark cod",
    "insect": "ant bee wasp beetle moth",
    "tree": "oak pine maple birch willow",
    "flower": "rose tulip daisy lily orchid",
    "fruit": "apple pear plum cherry lemon",
    "tool": "hammer saw drill wrench chisel",
    "vehicle": "truck bus car van tram",
    "vegetable": "carrot onion bean turnip pea",
    "instrument": "violin flute drum harp piano",
    "animal": "horse wolf sheep camel goat",
}
IRREGULAR_PLURALS = {
    "fish": "fish",
    "salmon": "salmon",
    "trout": "trout",
    "cod": "cod",
    "tuna": "tuna",
    "sheep": "sheep",
    "wolf": "wolves",
    "child": "children",
    "man": "men",
    "woman": "women",
    "foot": "feet",
    "tooth": "teeth",
    "mouse": "mice",
    "goose": "geese",
    "leaf": "leaves",
    "knife": "knives",
}

VERB_PAIRS = (("is", "are"), ("was", "were"), ("has", "have"), ("seems", "seem"), ("looks", "look"))
COUNTABLE = tuple(
    "key cabinet dog cat boy girl book box car farmer painter nurse house teacher bird horse friend "
    "lamp".split()
)
STORY_PLACES = tuple("store park school market office garden station library farm harbor".split())
STORY_GIFTS = tuple("book drink ring ball key lamp letter map hat coin".split())
EVENTS = tuple("war trip plan reign feud project contract drought siege trial voyage strike".split())
GOODS = tuple("lamp table ring clock boat carpet watch piano horse chair".split())
ADJECTIVES = tuple("old small big quiet happy young tired strong clean dark".split())
ACTIONS = tuple("slept waited laughed sang worked rested smiled walked played stopped".split())


def plural(noun: str) -> str:
    """The plural of an English noun in the lists above."""
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"
