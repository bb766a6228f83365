from .data import load_facts as load_facts
from .data.subjects import question_fact as question_fact
from .editor import Editor as Editor
from .evaluation.verify import Verification as Verification
from .evaluation.verify import verify as verify
from .facts import Fact as Fact
from .facts import Forget as Forget
from .facts import Neighbor as Neighbor
from .facts import Ripple as Ripple
from .facts import without_repeats as without_repeats
from .methods import METHODS as METHODS
from .methods import Method as Method
from .model.architectures import Architecture as Architecture
from .model.architectures import register_architecture as register_architecture
from .patch.patch import Patch as Patch
from .presets.own_methods import register_method as register_method
from .recipe import Recipe as Recipe
from .session import Session as Session
from .statistics.second_moment import SecondMoment as SecondMoment
from .strategies.regularizer import (
    CapSingularValues as CapSingularValues,
)
from .strategies.regularizer import (
    KeepLargest as KeepLargest,
)
from .strategies.regularizer import (
    SparePrincipal as SparePrincipal,
)
from .strategies.regularizer import (
    Unchanged as Unchanged,
)
from .strategies.solver import NullSpace as NullSpace
from .strategies.solver import Ridge as Ridge
from .strategies.spread import (
    Boundary as Boundary,
)
from .strategies.spread import (
    Each as Each,
)
from .strategies.spread import (
    Even as Even,
)
from .strategies.spread import (
    First as First,
)
from .strategies.spread import (
    SquareRoot as SquareRoot,
)
from .strategies.target import AnchoredNorm as AnchoredNorm
from .strategies.target import AttentionAndMlp as AttentionAndMlp
from .strategies.target import HiddenState as HiddenState

__all__: list[str]
__version__: str
