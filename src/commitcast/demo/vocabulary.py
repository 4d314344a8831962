"""The words of the grammar, whatever the data is about: comparisons, numbers, fillers."""

from __future__ import annotations

from commitcast.demo.items import CompareItem, FunctionItem, Item, WordItem

FILLERS = frozenset(
    # one text, because a list of a hundred quoted words is harder to read and to change
    """a about all also am an any are as at be been being called can chemical compare could describe
    did do does ever exist exists find for from get give had has have having hello hey hi high how
    i in info information inside is it its know let like list live lives living located long look
    low me much my name named names of off on one ones or our out please rank say show solar some
    sun system tell thank thanks that the their them then there these they this those to up us use
    used uses using want was we were what what's when which whose with within world would yes you
    your""".split()  # noqa: SIM905
)

PHRASES: dict[str, Item] = {
    "how many": WordItem("count"),
    "number of": WordItem("count"),
    "count": WordItem("count"),
    "count of": WordItem("count"),
    "per": WordItem("each"),
    "each": WordItem("each"),
    "every": WordItem("each"),
    "for each": WordItem("each"),
    "in each": WordItem("each"),
    "of each": WordItem("each"),
    "grouped by": WordItem("each"),
    "group by": WordItem("each"),
    "by": WordItem("by"),
    "sorted by": WordItem("by"),
    "ordered by": WordItem("by"),
    "order by": WordItem("by"),
    "sort by": WordItem("by"),
    "ascending": WordItem("ascending"),
    "descending": WordItem("descending"),
    "not": WordItem("not"),
    "not in": WordItem("not"),
    "outside": WordItem("not"),
    "outside of": WordItem("not"),
    "except": WordItem("not"),
    "excluding": WordItem("not"),
    "without": WordItem("not"),
    "no": WordItem("not"),
    "don't": WordItem("not"),
    "aren't": WordItem("not"),
    "isn't": WordItem("not"),
    "between": WordItem("between"),
    "and": WordItem("and"),
    "than": WordItem("than"),
    "top": WordItem("top"),
    "first": WordItem("top"),
    "average": FunctionItem("avg"),
    "mean": FunctionItem("avg"),
    "total": FunctionItem("sum"),
    "sum": FunctionItem("sum"),
    "sum of": FunctionItem("sum"),
    "combined": FunctionItem("sum"),
    "altogether": FunctionItem("sum"),
    "more than": CompareItem(">"),
    "greater than": CompareItem(">"),
    "higher than": CompareItem(">"),
    "over": CompareItem(">"),
    "above": CompareItem(">"),
    "exceeding": CompareItem(">"),
    "after": CompareItem(">"),
    "since": CompareItem(">="),
    "at least": CompareItem(">="),
    "less than": CompareItem("<"),
    "fewer than": CompareItem("<"),
    "lower than": CompareItem("<"),
    "under": CompareItem("<"),
    "below": CompareItem("<"),
    "before": CompareItem("<"),
    "at most": CompareItem("<="),
    "up to": CompareItem("<="),
    "exactly": CompareItem("="),
    "equal to": CompareItem("="),
    ">": CompareItem(">"),
    ">=": CompareItem(">="),
    "<": CompareItem("<"),
    "<=": CompareItem("<="),
    "=": CompareItem("="),
}

DEGREES = {
    True: [
        "most",
        "highest",
        "greatest",
        "maximum",
        "max",
        "strongest",
        "longest",
        "more",
        "higher",
        "longer",
    ],
    False: [
        "least",
        "lowest",
        "fewest",
        "minimum",
        "min",
        "weakest",
        "shortest",
        "less",
        "lower",
        "fewer",
        "shorter",
    ],
}
ORDINALS = ["second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
SMALL = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
SCALES = {
    "hundred": 1e2, "thousand": 1e3, "k": 1e3, "million": 1e6, "m": 1e6, "mn": 1e6,
    "billion": 1e9, "bn": 1e9, "trillion": 1e12,
}  # fmt: skip
AFFIXES = {
    "start with": "{}%", "starting with": "{}%", "starts with": "{}%", "begin with": "{}%",
    "beginning with": "{}%", "begins with": "{}%", "end with": "%{}", "ending with": "%{}",
    "ends with": "%{}", "end in": "%{}", "ending in": "%{}", "contain": "%{}%",
    "contains": "%{}%", "containing": "%{}%",
}  # fmt: skip
AFFIX_FILLERS = frozenset({"the", "letter", "letters", "a", "word"})
