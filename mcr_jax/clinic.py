"""Tables of the fictional clinic: diseases, findings and phrases, all invented.

`synthetic.py` makes cases of them. Value i of an axis never occurs in disease i of the family: one
finding leaves two diseases, a finding of each axis leaves one.
"""

import dataclasses

Wordings = tuple[str, str, str]  # two for all splits, one for the test split only
Signs = tuple[Wordings, Wordings, Wordings]  # one entry for each of the three values


@dataclasses.dataclass(frozen=True)
class Family:
    """Three diseases with the same presentation.

    Attributes:
      syndrome: wordings of the presenting complaint.
      diseases: names of the diseases.
      axis_a: findings of the examination.
      axis_b: findings of history or laboratory.
    """

    syndrome: tuple[str, str]
    diseases: tuple[str, str, str]
    axis_a: Signs
    axis_b: Signs


FAMILIES = (
    Family(
        ("humming of the ribs", "a droning chest"),
        ("Harrowmere fever", "Tidewick murmur", "Oskel rib-song"),
        (
            ("violet nail moons", "purple lunulae", "mulberry half-moons under the nails"),
            (
                "chalk-white nail moons",
                "pale chalky lunulae",
                "flour-white half-moons under the nails",
            ),
            ("ringed amber nails", "nails banded in amber", "honey-striped fingernails"),
        ),
        (
            ("scant vellin", "vellin nearly gone", "hardly a trace of vellin"),
            ("steady vellin", "vellin unmoved", "vellin where it always was"),
            ("brimming vellin", "vellin in excess", "vellin over the brim"),
        ),
    ),
    Family(
        ("evening skin-frost", "frosting of the skin at dusk"),
        ("Brindle rime", "Saltmarsh pallor", "Quellan frost-itch"),
        (
            ("feathered plaques", "plume-shaped plaques", "patches like goose down"),
            ("netted plaques", "lattice-like plaques", "patches like a fishing net"),
            ("coin-shaped plaques", "round coin-like plaques", "patches like farthings"),
        ),
        (
            ("relief from warm brine", "easing in warm salt water", "comfort from a hot sea bath"),
            (
                "worsening in warm brine",
                "flaring in warm salt water",
                "torment from a hot sea bath",
            ),
            (
                "no change in warm brine",
                "indifference to warm salt water",
                "no answer to a hot sea bath",
            ),
        ),
    ),
    Family(
        ("backward hiccups", "inward hiccups"),
        ("Lorn's gulletry", "Pellam hitch", "Vessary spasm"),
        (
            ("a copper-tasting tongue", "a coppery tongue", "a taste of old pennies"),
            (
                "a grooved slate tongue",
                "a slate-grey furrowed tongue",
                "a mouth like ploughed shale",
            ),
            ("a glazed scarlet tongue", "a shining scarlet tongue", "a mouth like red enamel"),
        ),
        (
            ("thin quorate", "quorate worn low", "barely any quorate"),
            ("even quorate", "quorate at its mark", "quorate as one hopes"),
            ("thick quorate", "quorate piled high", "quorate by the bucket"),
        ),
    ),
    Family(
        ("shadow-doubling of sight", "doubled shadows in vision"),
        ("Ombrel palsy", "Castelyn veil", "Dunmarrow glare"),
        (
            ("slow starry pupils", "star-shaped sluggish pupils", "lazy asterisks in both eyes"),
            ("quick oval pupils", "brisk oval pupils", "nimble almonds in both eyes"),
            ("uneven square pupils", "squared unequal pupils", "mismatched boxes in both eyes"),
        ),
        (
            (
                "onset after bell-foundry dust",
                "onset following dust of a bell foundry",
                "a beginning amid bell polish",
            ),
            (
                "onset after marsh honey",
                "onset following a meal of marsh honey",
                "a beginning amid bog nectar",
            ),
            (
                "onset after tallow smoke",
                "onset following smoke of tallow lamps",
                "a beginning amid lamp soot",
            ),
        ),
    ),
    Family(
        ("a knocking of both knees at rest", "knees that knock while resting"),
        ("Fennimore lameness", "Gristle ague", "Yarrowick joint-rust"),
        (
            (
                "rust-coloured joint fluid",
                "joint fluid the colour of rust",
                "brick-red water in the joints",
            ),
            ("pearly joint fluid", "joint fluid like pearl", "opal water in the joints"),
            (
                "greenish joint fluid",
                "joint fluid of a green tinge",
                "moss-green water in the joints",
            ),
        ),
        (
            ("sunken ostrine", "ostrine at the floor", "next to no ostrine"),
            ("level ostrine", "ostrine on its line", "ostrine just so"),
            ("soaring ostrine", "ostrine at the roof", "ostrine through the ceiling"),
        ),
    ),
    Family(
        ("sleep-whistling with daytime silence", "whistling in sleep and silence by day"),
        ("Marlo's hush", "Windle lung-knot", "Eastgate wheezel"),
        (
            (
                "a braided rattle at the bases",
                "a plaited basal rattle",
                "a crackle like wicker low in the chest",
            ),
            (
                "a single bell note at the bases",
                "one bell-like basal note",
                "a chime low in the chest",
            ),
            (
                "a papery rub at the bases",
                "a basal rub like paper",
                "a whisper of parchment low in the chest",
            ),
        ),
        (
            (
                "two siblings with the same complaint",
                "the same complaint in two siblings",
                "a brother and a sister alike afflicted",
            ),
            (
                "a grandparent with the same complaint",
                "the same complaint in a grandparent",
                "a forebear alike afflicted",
            ),
            (
                "no relative with the complaint",
                "a family free of the complaint",
                "kin who are all well",
            ),
        ),
    ),
    Family(
        ("green-noon headache", "headache at noon with green light"),
        ("Tolliver megrim", "Sablecrest pressure", "Inchmoor throb"),
        (
            (
                "swollen temple cords",
                "thickened cords at the temples",
                "ropy bulges beside the brow",
            ),
            ("cool temple hollows", "temple hollows cold to touch", "chilly dents beside the brow"),
            (
                "twitching temple folds",
                "temple folds that twitch",
                "jumping creases beside the brow",
            ),
        ),
        (
            ("dim cindral", "cindral fading", "cindral down to embers"),
            ("plain cindral", "cindral as in health", "cindral of the usual glow"),
            ("blazing cindral", "cindral flaring", "cindral white-hot"),
        ),
    ),
    Family(
        ("a cartwheel belly ache", "belly ache that turns like a cartwheel"),
        ("Hobble-gut", "Merrin's coil", "Netherby bloat"),
        (
            (
                "a drumming left flank",
                "drum sounds over the left flank",
                "a tabor beat under the left ribs",
            ),
            (
                "a silent left flank",
                "no sound over the left flank",
                "a stillness under the left ribs",
            ),
            (
                "a splashing left flank",
                "splash sounds over the left flank",
                "a slosh under the left ribs",
            ),
        ),
        (
            (
                "improvement with barley broth",
                "better after barley broth",
                "mending upon barley soup",
            ),
            ("pain with barley broth", "worse after barley broth", "cramps upon barley soup"),
            (
                "vomiting of barley broth",
                "barley broth brought up again",
                "retching upon barley soup",
            ),
        ),
    ),
)

TOWNS = (
    *("Quellbridge", "Upper Tarn", "Saltholm", "Grey Ferry", "Millow", "Oxenby", "Thistledown"),
    *("Larkwater", "Cobble End", "Winterslip", "Marrowfield", "Penny Cross"),
)
TRADES = (
    *("lantern keeper", "kite tailor", "bell tuner", "ferry clerk", "moss gatherer", "map inker"),
    *("clock winder", "tide counter", "button carver", "cheese porter", "rope dancer"),
    *("ink miller", "gate warden", "honey grader", "weather scribe", "chimney piper"),
)
PERSONS = (("man", "he", "his"), ("woman", "she", "her"))
SPANS = (
    *("two days", "five days", "nine days", "two weeks", "three weeks", "six weeks", "two months"),
    *("four months", "half a year"),
)
MODIFIERS = (
    *("since the spring fair", "for the past week", "on both visits", "agreed by two examiners"),
    *("more on the left", "more on the right", "after the first frost", "present on arrival"),
    *("again on the second day", "plain in daylight", "since the new moon", "confirmed at dusk"),
)
HISTORY = (
    "{She} had once taken tincture of {drug} for {span}.",
    "{Her} records mention a mended {bone} and nothing else.",
    "{She} kept {pets} and had not left {town} this year.",
    "{She} had been treated with {drug} without benefit.",
    "There was no loss of weight, and {she} slept well.",
    "{She} shared a house with {count} others, all of them well.",
    "{Her} appetite was {appetite}, and {she} drank mostly {drink}.",
)
DRUGS = ("solvane", "brackwort", "tessaline", "orrisol", "mellicane", "dovebalm", "pindrel")
BONES = ("collarbone", "wrist", "ankle", "little toe", "elbow")
PETS = ("three geese", "a blind goat", "tame jackdaws", "two ferrets", "bees", "a singing toad")
APPETITES = ("good", "poor", "fair", "unchanged", "great")
DRINKS = ("nettle tea", "barley water", "whey", "plum cordial", "rainwater")
VITALS = (
    "Pulse was {pulse} and temperature {temperature} C.",
    "The pulse ran at {pulse} beats, the temperature was {temperature} C.",
    "Breathing rate was {breaths}, pulse {pulse}.",
    "Weight was {weight} kg and height {height} cm.",
)
USUAL = "{routine} was {routine_value} {routine_unit}, which is usual."
ROUTINE_LABS = (
    ("Lumin", "g/L", 20, 40),
    ("Marl count", "per field", 2, 9),
    ("Tamsin", "u/L", 50, 99),
)
