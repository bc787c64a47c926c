"""YAML as the trainers read their own files: 1e-4 is a number, a date is text, and a key given twice is refused."""

import re
from typing import Any

import yaml

from lrsweep.config import yaml_safety
from lrsweep.errors import InputError

# YAML 1.1's floats, and those it forgot: an exponent without a dot.
_FLOAT = re.compile(
    r"""^[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d[\d_]*([eE][-+]?\d+)?)$
    |^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$""",
    re.VERBOSE,
)


# libyaml's, where PyYAML was built with it: the same language, ten times as fast.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):  # type: ignore[misc]
    """As the tools read their own files: 1e-4 is a number, a date is text. A key given twice is refused."""


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> Any:
    seen = set()
    for name, _ in node.value:
        if not isinstance(name, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key is a text", name.start_mark)
        if name.value in seen and name.value != "<<":
            raise yaml.constructor.ConstructorError(None, None, f"{name.value} is given twice", name.start_mark)
        seen.add(name.value)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if not tag.endswith((":float", ":timestamp"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def load_yaml(text: str, where: str) -> dict[str, Any]:
    """The mapping that a config file holds. Raises InputError naming file and line."""
    yaml_safety.check(text, where)
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as fault:
        mark, problem = (
            getattr(fault, "problem_mark", None),
            getattr(fault, "problem", None) or str(fault).splitlines()[0],
        )
        at = f"{where}:{mark.line + 1}" if mark else where
        raise InputError(f"{at}: not valid YAML: {problem}; correct that line") from None
    if not isinstance(tree, dict) or not all(isinstance(name, str) for name in tree):
        raise InputError(f"{where}: a config is a mapping of keys to values; give such a file")
    return tree
