"""A reader of statements about two scenes, which judges by centres and widths of shapes only."""

from eve_vl.synthetic.scenes.captions import all_captions
from eve_vl.synthetic.scenes.world import Scene
from helpers.scene_lookup import NUMBERS, Sentences, find_shapes, the_shape

STATEMENTS = Sentences()


def is_statement_true(left: Scene, right: Scene, statement: str) -> bool:
    return STATEMENTS.read(statement, left, right)


@STATEMENTS.pattern(r"one of the pictures shows (.+)")
def is_shown(left: Scene, right: Scene, caption: str) -> bool:
    return caption in all_captions(left) or caption in all_captions(right)


@STATEMENTS.pattern(r"(both|only one) pictures? contains? an? (.+)")
def is_in_both_or_one(
    left: Scene,
    right: Scene,
    quantity: str,
    description: str,
) -> bool:
    is_in_left = len(find_shapes(left, description)) > 0
    is_in_right = len(find_shapes(right, description)) > 0
    if quantity == "both":
        return is_in_left and is_in_right
    return is_in_left != is_in_right


@STATEMENTS.pattern(r"the (left|right) picture contains (an?|one|two|three) (.+)")
def is_in_one_picture(
    left: Scene,
    right: Scene,
    side: str,
    number: str,
    description: str,
) -> bool:
    scene = left if side == "left" else right
    count = len(find_shapes(scene, description))
    if number in ("a", "an"):
        return count > 0
    return count == NUMBERS.index(number)


@STATEMENTS.pattern(r"there are (.+?) (.+) in total")
def is_total(
    left: Scene,
    right: Scene,
    number: str,
    description: str,
) -> bool:
    total = len(find_shapes(left, description)) + len(find_shapes(right, description))
    return total == NUMBERS.index(number)


@STATEMENTS.pattern(r"both pictures contain the same number of (.+)")
def are_as_many(left: Scene, right: Scene, description: str) -> bool:
    return len(find_shapes(left, description)) == len(find_shapes(right, description))


@STATEMENTS.pattern(r"the (left|right) picture contains more (.+) than the (?:left|right) picture")
def are_more_on_side(
    left: Scene,
    right: Scene,
    side: str,
    description: str,
) -> bool:
    difference = len(find_shapes(left, description)) - len(find_shapes(right, description))
    return difference > 0 if side == "left" else difference < 0


@STATEMENTS.pattern(r"the (.+) (?:has the same|is the same) (color|kind) in both pictures")
def has_same_property(
    left: Scene,
    right: Scene,
    description: str,
    name: str,
) -> bool:
    in_left = the_shape(left, description)
    in_right = the_shape(right, description)
    return getattr(in_left, name) == getattr(in_right, name)


@STATEMENTS.pattern(r"both pictures have the same background")
def has_same_background(left: Scene, right: Scene) -> bool:
    return left.background == right.background
