"""Many runs on one machine or a cluster: ``python -m bench sweep FILE.yaml``.

``plan`` turns a file into runs, each a ``python -m bench fit`` command in its own folder; ``scheduler`` runs them on
Ray, and ``worker`` is the part on the other machines; ``estimate`` computes their cost; ``progress`` shows them.
"""
