"""Short texts of many kinds, all written for counting tokens; and pieces of texts that are made to take long."""

from __future__ import annotations

import base64
import hashlib

ENGLISH = {
    "chat": [
        "Hi! I'd like to change the delivery address for my order. I moved last week and forgot to update it in my "
        "account. Can you please help?",
        "No worries! Your refund has been processed and should appear on your statement within five business days. Is "
        "there anything else I can help you with?",
        "My daughter is seven and keeps waking up at night because of nightmares. Is that normal, and what can we do "
        "about it?",
        "ugh, my boss is driving me crazy again, she moved the meeting three times and now she's blaming me for it",
    ],
    "fiction": [
        "The rain had not stopped for three days, and by the time Ben reached the old boathouse his boots were full of "
        "water. He leaned the ladder against the rotten door, wiped his face with the back of his sleeve and listened.",
        "She folded the letter twice, slid it beneath the sugar bowl and went on peeling apples as if nothing "
        "whatever had happened. Her aunt watched her over the rim of a chipped teacup. “Well?” said the aunt at last.",
        "I never told my brother what I found under the floorboards. It wasn't much: a cracked pocket watch, two "
        "foreign coins, a photograph of a woman in a wide straw hat squinting into the sun.",
    ],
    "formal": [
        "The committee acknowledges receipt of the quarterly assessment and notes with concern that expenditure on "
        "maintenance has exceeded the approved allocation for the second consecutive period.",
        "Although inflation has moderated considerably since its peak, policymakers remain reluctant to declare "
        "victory. Wage growth continues to outpace productivity, and several indicators of underlying demand suggest "
        "that price pressures may prove more persistent than markets currently anticipate.",
        "Patients presenting with acute abdominal pain require systematic evaluation, including a thorough history, "
        "physical examination, laboratory investigations and, where indicated, diagnostic imaging.",
    ],
}

_DIGEST = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(8))

OTHER = {
    "German": [
        "Der alte Leuchtturmwärter stieg jeden Abend die einhundertzwölf Stufen hinauf, obwohl die Lampe längst "
        "elektrisch gesteuert wurde. „Man weiß ja nie“, brummte er und polierte die Linse.",
        "Hiermit kündige ich meinen Mobilfunkvertrag fristgerecht zum nächstmöglichen Zeitpunkt. Bitte bestätigen Sie "
        "mir den Eingang dieser Kündigung schriftlich.",
        "wohl",
    ],
    "Chinese": [
        "你好，我想问一下明天从北京到上海的高铁票还有吗？我需要两张靠窗的座位。",
        "春天的夜里，窗外雨声淅淅沥沥，奶奶在厨房里熬着一锅小米粥。",
        "繁體中文的文章也應該要能夠正確地估計，例如臺灣的鬱金香。",
    ],
    "Arabic": [
        "مرحبا، كيف يمكنني تغيير كلمة المرور الخاصة بحسابي؟ لقد نسيت البريد الإلكتروني.",
        "إِنَّ اللُّغَةَ جَمِيلَةٌ",
    ],
    "emoji": ["👏👏👏 🔥🔥 great job", "👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽👍🏿", "🇩🇪🇫🇷🇯🇵", "🫠🪿🫨", "❤️✨☀️"],
    "code": [
        "def total(items: list[int]) -> int:\n    result = 0\n    for item in items:\n        result += item\n"
        "    return result\n",
        "const load = async (userId) => {\n  const res = await fetch(`/api/v1/users/${userId}?limit=10`);\n"
        "  if (!res.ok) throw new HttpError(res.status);\n  return res.json();\n};\n",
        "SELECT u.id, COUNT(*) AS n FROM users u WHERE o.created_at >= NOW() - INTERVAL '7 days' GROUP BY 1;",
        '{"id": 17, "name": "ana", "tags": ["a", "b"], "nested": {"x": 1.5e-9, "ok": true, "none": null}}',
    ],
    "base64": [base64.b64encode(_DIGEST).decode(), base64.urlsafe_b64encode(_DIGEST[:31]).decode()],
    "hex and digits": [_DIGEST.hex(), str(int.from_bytes(_DIGEST)), "+49 (0)89 1234-5678, 4111 1111 1111 1111"],
    "URL": ["https://example.com/path/to/some-page_2.html?utm_source=news&utm_campaign=spring%20sale#section-3"],
    "gibberish": ["xqzvkj wvrtzpl qqjxz bdfghk", "jdkslfjqpwoeirutymznxbcvqazwsxedcrfvtgbyhnujmikolp", "ZXQJKVBW HJKQ"],
    "spaces and lines": ["    \n\n\t\t  \r\n \r\r\r", "=" * 70, "-" * 7 + "\n" + " " * 40 + "x", "|---|:--|\n"],
    "Russian": ["Здравствуйте! Подскажите, пожалуйста, как восстановить доступ к моей учётной записи?"],
    "Japanese": ["明日の会議は午後三時からに変更になりました。よろしくお願いいたします。", "薔薇の憂鬱、カタカナ"],
    "Korean": ["안녕하세요, 내일 회의 시간을 변경할 수 있을까요? 뷁쉙"],
    "Thai": ["สวัสดีครับ ผมต้องการเปลี่ยนที่อยู่จัดส่งสินค้า"],
    "Hindi": ["नमस्ते, मुझे अपने खाते का पासवर्ड बदलना है। क्या आप मेरी मदद कर सकते हैं?"],
    "rare scripts": ["ᚠᚢᚦᚨᚱᚲ", "ሰላም ለዓለም", "ᏣᎳᎩ", "𐎀𐎁𐎂", "བོད་ཡིག", "ꙮ", "𝕳𝖊𝖑𝖑𝖔", "ﷺ", "Z̸̢a̷l̶g̵o̴", "Ⅷ ½ ²"],
}

EVERYTHING = [text for kinds in (ENGLISH, OTHER) for texts in kinds.values() for text in texts]

# Of each expression that finds personal data: what it repeats, and what begins a match that then comes to nothing.
ADVERSARIAL = [
    "1", "1 ", ".", "a.", "a@", "a.b-c+", "Ab ", "A" + "b" * 99, "a:", "(", "1-", "12 " + "ab " * 20, " ", "A-a'",
    "a@a-", "+1(", "GB00A1", "born 1", "address is 1 a\n", "a.com.", ".com", "www.", "://", "a://", "::", "0:",
    "[at]", " at a dot ", "at]", "my name is ", "name is a ", "dear ", "anna ", "Anna ", "anna smith ", "Dr. ",
    "Mr Mr ", "Jr. ", "A. ", "O'", "12 Main Street, ", "12 Main ", "apt 1 ", "1 Aa, ", "NY 1", "SW1A ", "A1A ", "A1",
    "zip 1", "ssn 1", "123-45-", "1,", "1.1.1.1.", "QUJD", "QUJDREVG", "=", "e\u0301", "\u0301", "\u200b", "\u200ba",
    "%40", "%4", "İ", "١", "аb", "[", "[PERSON", "[PERSON~", "[PERSON~k7qm2x9a~w4t", "~", "PERSON~", "\n", "\n\n1",
    ">", "box ", "P.O. Box ", "PSC 1 ", "((((", "))))", "[(", "_", "-", "'", "a'", "a-", "1a", "a1", "Aa1", "né ",
    "geb.", "birth", "is my birthday ", "in Paris 1234", "in Aa Aa Aa Aa 1234 ", "Straße 1 ", "rue de la ", "de ",
    "van der ", "Anna van der ", '"A" ',
]  # fmt: skip
