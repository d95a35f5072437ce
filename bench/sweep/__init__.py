"""Many runs on one machine or a cluster: ``python -m bench sweep FILE.yaml``.

``plan`` turns a file into runs, each a ``python -m bench fit`` command in a folder of its own; ``scheduler`` runs them
on Ray, ``worker`` being what runs on the other machines; ``estimate`` says what they cost; ``progress`` shows them.
"""
