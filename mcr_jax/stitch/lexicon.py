"""The English words that the audit of traces knows by what they do to a sentence."""


def words(text: str) -> frozenset[str]:
    """The words of `text`, set apart by blanks."""
    return frozenset(text.split())


# Deny what follows: "no fever".
DENIES = words(
    """
    no not without never neither nor none nobody cannot denies denied denying lack lacks lacked
    lacking absence
    """
)
# Deny what comes before: "fever was absent".
DENIES_BEFORE = words("absent lacking")
# After "not", these deny what comes before: "a rash was not seen".
ASSERTS = words(
    """
    seen found present observed detected identified noted shown visible evident demonstrated
    performed reported felt heard supported
    """
)
# After "not", these deny a relation, and neither of what stands in it: "does not fit fever".
RELATES = words(
    """
    fit explain explained match agree suggest suggested suggestive support supportive consistent
    compatible typical typically characteristic correspond favor favour indicate indicative account
    point sufficient enough diagnostic only
    """
)
AUXILIARIES = words("was were is are had has have")
# Where a clause begins, and the reach of a denial ends.
TURNS = words(
    """
    but so because although though however which while whereas thus therefore hence given since by
    as due making suggesting leaving yet he she they
    """
)

# What a clause says of the disease that it names.
EXCLUDES = words(
    """
    exclude excludes excluded excluding exclusion unlikely improbable implausible against rejected
    dismissed discarded discounted incompatible inconsistent precludes precluded refuted rule rules
    ruled ruling eliminated eliminates eliminating discards dismisses rejects disproved disproves
    doubtful
    """
)
# Conclude unless something in the clause weighs: "the diagnosis of gout was considered".
AFFIRMS_ALONE = words(
    """
    diagnosed diagnosis supported supports support identified favor favors favored favour favours
    favoured
    """
)
AFFIRMS = AFFIRMS_ALONE | words(
    """
    confirm confirms confirmed confirming confirmation establish establishes established likeliest
    proved proves proven concluded verified secured clinched
    """
)
DIAGNOSES = words("diagnosis diagnosed diagnose diagnoses")
PROVISIONAL = words("differential working initial initially tentative provisional sole")
# Say less than that; yet where a statement says "supported", these will do.
SUPPORTS = words(
    """
    suggest suggests suggested suggestive indicate indicates indicated point points pointed fit fits
    explain explains explained consistent compatible keeping likely spoke speak speaks
    """
)
WEIGHS = words(
    """
    consider considers considered considering consideration considerations suspect suspected
    suspicion possible possibly possibility possibilities might may could can concern
    """
)
# After "not", these exclude what a clause is about: "the picture does not fit gout".
FITS = words(
    """
    fit explain explained match likely probable suggest suggested suggestive support supportive
    consistent compatible characteristic indicate indicative indicated found seen present observed
    detected shown demonstrated met
    """
)
# End the reach of a denial: "absence of fever makes gout likely".
CONCLUDES = (EXCLUDES | AFFIRMS) - words("diagnosis confirmation exclusion") | words(
    """
    make makes made argue argues argued arguing speak speaks spoke suggest suggests suggested point
    points pointed fits mean means meant
    """
)

# Too common, or too much a matter of style, for a statement to be told by.
GLUE = (
    DENIES
    | DENIES_BEFORE
    | EXCLUDES
    | AFFIRMS
    | WEIGHS
    | words(
        """
        a about above after again all alone also although an and any are as at be became because
        become been before being both but by came can case clinical clinician come consider
        considered considering consideration considerations could deemed did differential do does
        due e each either enough evaluated even evidence example find finding findings for found
        from further g given gives had has have he hence her here him his hold how however i if in
        include included includes including initial initially into is it its itself join leave
        leaves leaving likely less made make makes making may might more most much must need noted
        observed of off on one only open or other others otherwise our out over own patient point
        points possibility possible presence present presented rather reading reads s seemed seems
        seen should show showed shown shows since so some speak speaks such suggest suggested
        suggests than that the their them then there therefore these they this those though through
        thus to together too toward under until up very was we were what when where whereas whether
        which while who whose why will with within would yet you your
        """
    )
)
# Of each pair one word is not said for the other. Words beside one another mean the same.
OPPOSITES = tuple(
    (tuple(one.split()), tuple(other.split()))
    for one, other in (
        ("left", "right"),
        ("high higher raised elevated elevation increased", "low lower lowered reduced decreased"),
        ("positive", "negative"),
        ("unilateral", "bilateral"),
        ("upper", "lower"),
        ("proximal", "distal"),
        ("anterior", "posterior"),
        ("superior", "inferior"),
        ("medial", "lateral"),
        ("acute", "chronic"),
        ("hyperintense", "hypointense"),
        ("hypertension", "hypotension"),
        ("normal", "abnormal"),
        ("improved improving improvement better", "worsened worsening worse"),
        ("benign", "malignant"),
    )
)
SAME = {word: side[0] for pair in reversed(OPPOSITES) for side in pair for word in side}

# Are names of diseases although they do not end as such do.
NAMES = words(
    """
    anaphylaxis aneurysm asthma botulism cholera dementia dengue diabetes eczema embolism epilepsy
    glaucoma gout gravis hernia herpes infarction influenza leprosy lupus malaria measles migraine
    mumps myasthenia pneumothorax porphyria purpura rabies rickets rubella scleroderma scurvy
    shingles stroke syphilis tetanus typhoid typhus varicella
    """
)
# End as names of diseases do, and are none.
NO_NAMES = words(
    """
    apoptosis aroma coma diagnoses diagnosis diploma endocytosis genoma hypnosis misdiagnosis
    mitosis osmosis phagocytosis prognoses prognosis stroma symbiosis
    """
)
# Make a name of the word before them: "Proteus syndrome". Not "fever" or "injury", before which any
# word may stand …
HEADS = words(
    """
    syndrome disease disorder tumor tumour deficiency palsy dystrophy poisoning toxicity anomaly
    """
)
# … unless it is one of these.
LOOSE = (
    AUXILIARIES
    | GLUE
    | words(
        """
        active acute against another associated benign both causing chronic clinical common despite
        develop developed developing develops due fever given grade high in known low malignant mild
        new persistent primary probable progressive rare recurrent same secondary serious severe
        similar different suspected systemic underlying unknown widespread worsening
        """
    )
)
