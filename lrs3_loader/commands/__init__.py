"""Commands of ``lrs3-loader``, one module each: ``main(argv)`` parses, calls the package and returns the exit code.

Slow imports, torch above all, happen after the arguments are parsed, so that help and errors in arguments appear at
once; the doctor must work even if torch cannot be imported.
"""
