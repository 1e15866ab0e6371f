"""The commands of ``lrs3-loader``, a module each: ``main(argv)`` parses, calls the package, returns the exit code.

Nothing that takes long to import (torch above all) is imported before the arguments have been parsed, so that help and
complaints about arguments come at once; the doctor must work where torch does not even import.
"""
