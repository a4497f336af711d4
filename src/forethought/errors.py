"""What can go wrong, by who can fix it.

    ForethoughtError
    |-- UserError              the user can fix it: one sentence with key, value and fix; exit 2
    |   |-- RecipeError        a recipe or --set value is wrong
    |   |-- TaskError          a task name, option or data file is wrong
    |   |-- ModelError         a model cannot be found or loaded
    |   |-- RewardError        a user's reward function raised or returned the wrong thing
    |   |-- SandboxError       model-written code cannot be isolated on this machine
    |   `-- StrategyError      a strategy, one of its options, or a budget is wrong
    |-- EngineError            an engine cannot do what a request asks
    |   `-- BrokenModel        its model's logits are not finite
    `-- TrainingStopped        training cannot go on (non-finite updates, full disk); resumable

A bad rollout is data and never raises. Anything else that raises is a bug of ours.
"""


class ForethoughtError(Exception):
    """Base of every error this package raises on purpose."""


class UserError(ForethoughtError, ValueError):
    """A mistake the user can fix. The message is one sentence: the key, the value and the fix."""


class RecipeError(UserError):
    """A recipe, or a value given with --set, is wrong."""


class TaskError(UserError):
    """A task name, one of its options, or its data file is wrong."""


class ModelError(UserError):
    """A model cannot be found, is incomplete, or is not a causal language model."""


class RewardError(UserError):
    """A reward function raised, or returned something other than one number a completion."""


class SandboxError(UserError):
    """This machine cannot isolate model-written code as asked."""


class StrategyError(UserError):
    """A strategy's name, one of its options, a budget or a price is wrong."""


class EngineError(ForethoughtError):
    """A request asks for something this engine cannot do."""


class BrokenModel(EngineError):
    """The model's logits are not finite: nothing can be sampled from it."""


class TrainingStopped(ForethoughtError):
    """Training cannot go on. What was checkpointed stays and the run can be resumed."""
