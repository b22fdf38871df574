"""What tests of several parts share."""

from __future__ import annotations

import io
import textwrap

from filecheck.finput import FInput
from filecheck.matcher import Matcher
from filecheck.options import Options
from filecheck.parser import Parser, pattern_for_opts


def filecheck(text: str, checks: str) -> None:
    """Match printed text against LLVM FileCheck directives, in process.

    Raises AssertionError with FileCheck's explanation and the whole text.

        filecheck(print_model(model), '''
            CHECK: %linear = linear(%x, w=fc.weight
            CHECK-NEXT: relu(%linear)
            CHECK-NOT: dropout
        ''')
    """
    options = Options(match_filename="checks", input_file="printed")
    parser = Parser(options, io.StringIO(textwrap.dedent(checks)), *pattern_for_opts(options))
    matcher = Matcher(options, FInput("printed", text), parser)
    matcher.stderr = io.StringIO()
    if matcher.run() != 0:
        raise AssertionError(f"{matcher.stderr.getvalue()}\n--- printed ---\n{text}")
