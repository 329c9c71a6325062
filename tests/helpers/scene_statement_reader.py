"""A reader of statements about two scenes, which judges by centres and widths of shapes only."""

from eve_vl.synthetic.scenes.captions import all_captions
from eve_vl.synthetic.scenes.world import Scene
from helpers.scene_lookup import NUMBERS, Sentences, find_shapes, the_shape

STATEMENTS = Sentences()


def is_statement_true(left: Scene, right: Scene, statement: str) -> bool:
    return STATEMENTS.read(statement, left, right)


def _counts(left: Scene, right: Scene, description: str) -> tuple[int, int]:
    return len(find_shapes(left, description)), len(find_shapes(right, description))


@STATEMENTS.pattern(r"one of the pictures shows (.+)")
def _shows(left: Scene, right: Scene, caption: str) -> bool:
    return caption in all_captions(left) or caption in all_captions(right)


@STATEMENTS.pattern(r"both pictures contain the same number of (.+)")
def _same_number(left: Scene, right: Scene, description: str) -> bool:
    num_left, num_right = _counts(left, right, description)
    return num_left == num_right


@STATEMENTS.pattern(r"both pictures contain an? (.+)")
def _in_both(left: Scene, right: Scene, description: str) -> bool:
    return min(_counts(left, right, description)) > 0


@STATEMENTS.pattern(r"the (left|right) picture contains (an?|one|two|three) (.+)")
def _on_side(left: Scene, right: Scene, side: str, number: str, description: str) -> bool:
    scene = left if side == "left" else right
    count = len(find_shapes(scene, description))
    if number in ("a", "an"):
        return count > 0
    return count == NUMBERS.index(number)


@STATEMENTS.pattern(r"only one picture contains an? (.+)")
def _in_one_only(left: Scene, right: Scene, description: str) -> bool:
    num_left, num_right = _counts(left, right, description)
    return (num_left > 0) != (num_right > 0)


@STATEMENTS.pattern(r"there are (.+?) (.+) in total")
def _total(left: Scene, right: Scene, number: str, description: str) -> bool:
    return sum(_counts(left, right, description)) == NUMBERS.index(number)


@STATEMENTS.pattern(r"the (left|right) picture contains more (.+) than the (?:left|right) picture")
def _more_on_side(left: Scene, right: Scene, side: str, description: str) -> bool:
    num_left, num_right = _counts(left, right, description)
    return num_left > num_right if side == "left" else num_right > num_left


@STATEMENTS.pattern(r"the (.+) (?:has the same|is the same) (color|kind) in both pictures")
def _same_property(left: Scene, right: Scene, description: str, name: str) -> bool:
    shapes = (the_shape(left, description), the_shape(right, description))
    return getattr(shapes[0], name) == getattr(shapes[1], name)


@STATEMENTS.pattern(r"both pictures have the same background")
def _same_background(left: Scene, right: Scene) -> bool:
    return left.background == right.background
