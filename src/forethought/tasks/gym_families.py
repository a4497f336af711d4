"""What is known of reasoning-gym's families: how each is graded, which are slow, which unsound.

A family that is not listed as exact is graded by reasoning-gym's own scorer (`gym_scoring`).
"""

from __future__ import annotations

from collections.abc import Mapping

# The answer is one number and the question never states it: equal in value is right.
NUMBER_FAMILIES = frozenset(
    (
        "basic_arithmetic",
        "binary_alternation",
        "chain_sum",
        "count_bits",
        "count_primes",
        "decimal_chain_sum",
        "gcd",
        "gsm_symbolic",
        "largest_island",
        "lcm",
        "leg_counting",
        "letter_counting",
        "products",
        "rotten_oranges",
        "simple_equations",
    )
)
# The answer is one string: equal letter for letter, but for case and spaces around it.
TEXT_FAMILIES = frozenset(
    (
        "base_conversion",
        "bitwise_arithmetic",
        "caesar_cipher",
        "calendar_arithmetic",
        "spell_backward",
    )
)
EXACT_FAMILIES = NUMBER_FAMILIES | TEXT_FAMILIES

# "3 * 7", "7 * 3" and another wording of either must not stand on both sides of the split.
UNORDERED_FAMILIES = frozenset(
    ("basic_arithmetic", "chain_sum", "decimal_chain_sum", "gcd", "lcm", "products")
)

# A problem takes 20 ms to a second to make: these have fewer by default.
SLOW_FAMILIES = frozenset(
    (
        "countdown",
        "futoshiki",
        "intermediate_integration",
        "knight_swap",
        "number_sequence",
        "polynomial_equations",
        "puzzle24",
        "quantum_lock",
        "rubiks_cube",
        "sokoban",
        "sudoku",
        "zebra_puzzles",
    )
)

# Making a problem runs a program from the package's data, which may print or write files.
PROGRAM_FAMILIES = frozenset(("codeio",))

# Where many answers are right, reasoning-gym gives one of them under this key of the metadata.
REFERENCE_KEYS: Mapping[str, str] = {
    "graph_color": "possible_answer",
    "propositional_logic": "example_answer",
    "rubiks_cube": "example_correct_answer",
}
