"""A folder of results -> which method for which device.

    collect      files, recognized by their format               -> Study
    subjects     runs, evaluations and manifests of one artifact -> Subject
    accuracy     Tables 1 and 2 of the paper, and the gap
    inference    Table 3, by `across`; and whether rankings transfer
    cost         Table 4
    answer       what is best on each device, or that it is not known
    document     all of it at once, which every report reads

Nothing here measures, and nothing here rounds. A row holds the speed of an artifact beside the
accuracy of the same artifact: of one digest, never of one name.
"""
