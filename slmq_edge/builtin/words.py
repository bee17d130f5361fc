"""The words of the small world and the sentences they stand in."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PEOPLE = _words(
    "Ada Agnes Alma Amos Anton Arlo Astrid Basil Beata Boris Bruno Carla Casper Cecil Clara "
    "Conrad Dagmar Daria Dora Edgar Edith Elias Emil Erik Esther Fabian Felix Flora Frida "
    "Gaston Greta Gustav Hanna Hector Helga Hugo Ida Igor Ingrid Iris Ivan Jasper Joana "
    "Jonas Judith Karl Kaspar Klara Lars Lena Leon Lydia Magnus Mara Marek Martha Mira "
    "Moritz Nadia Nils Nora Olaf Olga Oscar Otto Paula Pavel Petra Quentin Ralf Rita Rosa "
    "Rufus Selma Sergio Silas Sonja Stella Sven Tamara Thea Theo Tilda Tobias Ulla Ursula "
    "Vera Victor Viola Walter Wanda Werner Yara Yves Zelda Zoltan"
)
TOWNS = _words(
    "Arden Brook Calder Dorvik Elmstead Farrow Gransby Holt Ilmar Jarrow Kelby Lunden "
    "Marsh Norby Oakham Penrith Quarley Rowan Selby Thorne Upton Velden Wexham Yarm"
)
TRADES = _words(
    "baker carpenter doctor farmer gardener hunter judge knitter lawyer mason nurse painter "
    "potter roofer sailor smith tailor teacher weaver writer"
)
PETS = _words("beetle canary cat dog dove ferret goat hamster hen lizard parrot pony rabbit snail")
FOODS = _words(
    "beans bread cheese cherries fish honey leeks lentils mushrooms noodles pears plums "
    "pumpkin rice soup walnuts"
)
SPORTS = _words(
    "archery boxing chess climbing cycling dancing fencing hiking rowing running skating "
    "skiing swimming tennis"
)
LANDSCAPES = _words("bay cliff desert forest hill lake moor river swamp valley")
GOODS = _words("amber baskets bells butter candles carpets clocks glass paper salt silk wool")
# From the smallest to the biggest.
ANIMALS = _words(
    "flea ant bee wasp moth mouse sparrow rat squirrel crow hare duck fox goose otter beaver "
    "lynx wolf sheep pig deer bear horse buffalo rhino elephant whale"
)
THINGS = _words(
    "boots boxes chairs coins combs cups dolls drums flutes forks hats keys kites lamps maps "
    "masks nails pins pots rings ropes saws shawls spoons"
)

PERSON_WORDINGS: dict[str, tuple[str, ...]] = {
    "home": (
        "{0} lives in {1}.",
        "The house of {0} stands in {1}.",
        "{0} has a home in {1}.",
        "Every evening {0} goes back to {1}.",
        "You can visit {0} in {1}.",
    ),
    "trade": (
        "{0} works as a {1}.",
        "The trade of {0} is that of a {1}.",
        "{0} earns money as a {1}.",
        "Years ago {0} became a {1}.",
        "People know {0} as a {1}.",
    ),
    "pet": (
        "{0} keeps a {1}.",
        "The pet of {0} is a {1}.",
        "{0} takes good care of a {1}.",
        "At home {0} feeds a {1}.",
        "For a birthday {0} was given a {1}.",
    ),
    "food": (
        "{0} likes to eat {1}.",
        "The favourite food of {0} is {1}.",
        "{0} never gets tired of {1}.",
        "For dinner {0} cooks {1}.",
        "To please {0} one should serve {1}.",
    ),
    "sport": (
        "{0} is good at {1}.",
        "The hobby of {0} is {1}.",
        "{0} spends every Sunday on {1}.",
        "As a child {0} began with {1}.",
        "Nobody beats {0} at {1}.",
    ),
}
TOWN_WORDINGS: dict[str, tuple[str, ...]] = {
    "landscape": (
        "{0} lies near the {1}.",
        "The town of {0} was built by the {1}.",
        "From {0} it is a short walk to the {1}.",
        "Visitors of {0} admire the {1}.",
        "Not far from {0} begins the {1}.",
    ),
    "goods": (
        "{0} is known for its {1}.",
        "The workers of {0} make {1}.",
        "Traders come to {0} to buy {1}.",
        "The pride of {0} is its {1}.",
        "The shops of {0} sell {1}.",
    ),
}
# {0} is the bigger one.
SIZE_WORDINGS = (
    "The {0} is bigger than the {1}.",
    "The {0} is much heavier than the {1}.",
    "The {0} takes more space than the {1}.",
    "A {0} easily outweighs the {1}.",
)
SIZE_WORDINGS_REVERSED = (
    "The {1} is smaller than the {0}.",
    "The {1} is much lighter than the {0}.",
    "The {1} takes less space than the {0}.",
    "A {1} is outweighed by the {0}.",
)
# What can happen in a story to person {0}, with a thing or a town {1}.
EVENT_WORDINGS: dict[str, tuple[str, ...]] = {
    "thing": ("{0} bought {1}.", "{0} found {1}.", "{0} carried {1}.", "{0} wanted {1}."),
    "visit": ("{0} visited {1}.", "{0} reached {1}.", "{0} left {1}.", "{0} crossed {1}."),
}
# How matters stand in the end: person to thing, person to town, thing to person.
RECAP_WORDINGS: dict[str, tuple[str, ...]] = {
    "thing": ("Today {0} owns {1}.", "Now {0} has {1}.", "At last {0} sells {1}."),
    "visit": ("Often {0} praises {1}.", "Still {0} misses {1}.", "Later {0} describes {1}."),
    "owner": (
        "The {1} belong to {0}.",
        "The one with the {1} is {0}.",
        "Nobody touches the {1} but {0}.",
    ),
}
